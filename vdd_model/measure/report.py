"""Pictures and tables about clips: zoomed panels (paper Fig. 3), error maps (Fig. 4), and `compare` for two clips."""
from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..errors import UserError
from ..media.files import write_whole
from . import metrics
from .progress import FrameBar

if TYPE_CHECKING:
    from ..media.clip import VideoClip
    from ..media.reader import VideoReader

ERROR_LIMIT = 48 / 255                # error that gets the brightest color of an error map
BOX_COLOR = (255, 64, 32)
# A dark-to-bright map, monotone in lightness: black, violet, red, orange, pale yellow.
_ANCHORS = ((0, 0, 4), (60, 15, 110), (140, 40, 105), (205, 65, 60), (245, 125, 20), (250, 200, 60), (252, 255, 200))


class ZoomBox(NamedTuple):
    """A part of a picture, in pixels."""

    x: int
    y: int
    width: int
    height: int


Picture = Tensor | np.ndarray | Image.Image


def to_image(picture: Picture) -> Image.Image:
    """A frame (H, W, 3) or (H, W) in [0, 1], or a Pillow image, as an 8-bit RGB image."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    x = torch.as_tensor(picture).detach().float().cpu().clamp(0, 1).mul(255).round().byte().numpy()
    return Image.fromarray(x).convert("RGB")


def color_map(values: Tensor) -> Tensor:
    """(H, W) in [0, 1] -> colors (H, W, 3) in [0, 1]."""
    anchors = torch.tensor(_ANCHORS, dtype=torch.float32, device=values.device) / 255
    position = values.float().clamp(0, 1) * (len(anchors) - 1)
    low = position.floor().long().clamp(max=len(anchors) - 2)
    return torch.lerp(anchors[low], anchors[low + 1], (position - low).unsqueeze(-1))


def error_map(output: Tensor, truth: Tensor) -> Image.Image:
    """Mean absolute error over the channels of two frames (H, W, 3) as a picture (paper Fig. 4): black is none, pale is `ERROR_LIMIT` or
    more. A strip below names the colors in 1/255.
    """
    if output.shape != truth.shape:
        raise UserError(f"an error map needs two frames of one size, found {_size(output)} and {_size(truth)}")
    error = (output.float().clamp(0, 1) - truth.float().clamp(0, 1)).abs().mean(dim=-1)
    picture = to_image(color_map(error / ERROR_LIMIT))
    # the strip
    height = max(16, picture.height // 24)
    sheet = ImageOps.expand(picture, (0, 0, 0, height + 2), "white")
    text = ImageFont.load_default(int(height * 0.75))
    draw = ImageDraw.Draw(sheet)
    top = picture.height + 2
    right = f"{ERROR_LIMIT * 255:.0f}/255 and more"
    left_width, right_width = draw.textlength("0", font=text), draw.textlength(right, font=text)
    start, stop = int(left_width) + 10, picture.width - int(right_width) - 10
    draw.text((4, top), "0", "black", font=text)
    if stop - start > 8:
        strip = to_image(color_map(torch.linspace(0, 1, stop - start)[None].expand(height, -1)))
        sheet.paste(strip, (start, top))
        draw.text((stop + 6, top), right, "black", font=text)
    return sheet


def _size(frame: Tensor) -> str:
    return f"{frame.shape[1]} x {frame.shape[0]}"


def interesting_box(images: Sequence[Picture]) -> ZoomBox:
    """Where a panel zooms in: the part, a quarter of the sides, in which the first and the last picture differ most.

    With one picture, or equal ones, the part with the most detail. The outermost sixteenth is left out.
    """
    first, last = (torch.from_numpy(np.asarray(to_image(i), dtype=np.float64)).sum(-1) for i in (images[0], images[-1]))
    height, width = last.shape
    score = (first - last).abs()
    if not score.any():
        score[1:, 1:] = (last[1:, 1:] - last[:-1, 1:]).abs() + (last[1:, 1:] - last[1:, :-1]).abs()
    high, wide = max(8, round(height / 4)), max(8, round(width / 4))
    if height <= high or width <= wide:
        return ZoomBox(0, 0, width, height)
    corner = torch.nn.functional.pad(score, (1, 0, 1, 0)).cumsum(0).cumsum(1)              # integers: sums are exact
    total = corner[high:, wide:] - corner[:-high, wide:] - corner[high:, :-wide] + corner[:-high, :-wide]
    dy, dx = (min(n // 16, (m - 1) // 2) for n, m in ((height, total.shape[0]), (width, total.shape[1])))
    inner = total[dy:total.shape[0] - dy, dx:total.shape[1] - dx]
    row, column = divmod(int(inner.argmax()), inner.shape[1])
    return ZoomBox(column + dx, row + dy, wide, high)


def _check_box(box: ZoomBox, width: int, height: int) -> None:
    if box.width < 1 or box.height < 1 or min(box.x, box.y) < 0 or box.x + box.width > width or box.y + box.height > height:
        raise UserError(f"the part to enlarge, {box.width} x {box.height} pixels at ({box.x}, {box.y}), is empty or does not lie within "
                        f"the frame's {width} x {height}")


def panel(images: Sequence[Picture], labels: Sequence[str], zoom_box: Sequence[int] | None = None, width: int | None = None) -> Image.Image:
    """Pictures of one size side by side, below each the part `zoom_box` (x, y, width, height) enlarged (paper Fig. 3).

    images: frames (H, W, 3) in [0, 1] or Pillow images; without `zoom_box`, `interesting_box` chooses. `width` of one column: by default
    the picture's own, at most 480. Raises UserError for pictures of different sizes and a box outside of them.
    """
    pictures = [to_image(i) for i in images]
    if len({p.size for p in pictures}) != 1 or len(labels) != len(pictures):
        found = ", ".join(f"{p.width} x {p.height}" for p in pictures)
        raise UserError(f"a panel needs pictures of one size and a label for each, found {found} and {len(labels)} labels")
    full_width, full_height = pictures[0].size
    box = ZoomBox(*zoom_box) if zoom_box is not None else interesting_box(pictures)
    _check_box(box, full_width, full_height)
    width = width or min(full_width, 480)
    scale = width / full_width
    height, zoom_height = max(1, round(full_height * scale)), max(1, round(box.height * width / box.width))
    # Nearest neighbour shows what is there: a smooth enlargement would hide rings and grids.
    smooth = Image.NEAREST if width >= 2 * box.width else Image.LANCZOS
    columns = []
    for picture in pictures:
        part = picture.crop((box.x, box.y, box.x + box.width, box.y + box.height)).resize((width, zoom_height), smooth)
        whole, (left, top) = picture.resize((width, height), Image.LANCZOS), (box.x * scale, box.y * scale)
        inside = left, top, left + max(1, box.width * scale) - 1, top + max(1, box.height * scale) - 1
        for image, frame in ((whole, inside), (part, (0, 0, width - 1, zoom_height - 1))):
            ImageDraw.Draw(image).rectangle(frame, outline=BOX_COLOR, width=max(2, width // 160))
        columns.append((whole, part))
    return grid([*zip(*columns)], labels, max(18, width // 14), max(12, width // 22))


def grid(rows: Sequence[Sequence[Picture]], labels: Sequence[str] = (), strip: int = 22, size: int = 16) -> Image.Image:
    """Pictures side by side, those of a row of one height; `labels`, of this size and cut to the width, stand in a strip above."""
    pictures, gap, y = [[to_image(picture) for picture in row] for row in rows], 4, strip if labels else 0
    wide = max(sum(picture.width + gap for picture in row) for row in pictures) - gap
    sheet = Image.new("RGB", (wide, y + sum(row[0].height + gap for row in pictures) - gap), "white")
    draw, text = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    for row in pictures:
        left = 0
        for picture, label in zip(row, chain(labels if row is pictures[0] else (), repeat(""))):
            while label and draw.textlength(label, font=text) > picture.width - 4:
                label = label[:-1]
            draw.text((left + 2, 2), label, "black", font=text)
            sheet.paste(picture, (left, y))
            left += picture.width + gap
        y += row[0].height + gap
    return sheet


def save_image(image: Image.Image, path: str | os.PathLike) -> Path:
    """Write a picture aside and rename it; the suffix of `path` chooses the format."""
    path = Path(path)
    data = io.BytesIO()
    image.save(data, format=Image.registered_extensions().get(path.suffix.lower(), "PNG"))
    return write_file(path, data.getvalue())


def write_file(path: Path, data: bytes | str) -> Path:
    """Write a file aside and rename it; folders are made. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


def save_text(text: str, path: str | os.PathLike) -> Path:
    """Write a text file aside and rename it."""
    return write_file(Path(path), text if text.endswith("\n") else text + "\n")


def format_value(key: str, value: float | None) -> str:
    """A number of a metrics column as text; an empty measure is a dash."""
    return "-" if value is None else f"{value:.{metrics.COLUMNS[key][1]}f}"


def measures_table(rows: Mapping[str, Mapping[str, float | None]], first: str = "", always: Sequence[str] = ("lpips",)) -> str:
    """Rows of `metrics.Scorer.result`, one clip or setting each, as a Markdown table of one measure a row: narrow enough for a terminal.

    Measures that none has are left out, but for those of `always`: of LPIPS the caller prints why.
    """
    return align(_cells(rows, first, always))


def markdown_table(rows: Mapping[str, Mapping[str, float | None]], first: str = "", always: Sequence[str] = ("lpips",)) -> str:
    """The same turned round."""
    return align([*zip(*_cells(rows, first, always))])


def _cells(rows: Mapping[str, Mapping[str, float | None]], first: str, always: Sequence[str]) -> list[list[str]]:
    return [[first, *rows], *([title, *(format_value(key, row.get(key)) for row in rows.values())]
                              for key, (title, *_) in metrics.COLUMNS.items()
                              if key in always or any(row.get(key) is not None for row in rows.values()))]


def align(cells: Sequence[Sequence[str]]) -> str:
    """Cells, the first row being the head, as a Markdown table whose columns are padded so that it reads well as text too."""
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(cells[0]))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join("| " + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]) + " |"
                     for row in (cells[0], rule, *cells[1:]))


def lpips_note() -> str:
    """Why the LPIPS column is empty, or ""."""
    reason = metrics.lpips_model()[1]
    return f"LPIPS is empty: {reason}." if reason else ""


def compare_frames(scorers: Sequence[metrics.Scorer], together: Iterable[Sequence[Tensor | None]], *, shown: int = 0,
                   progress: Callable[[float], None] = lambda frames: None) -> tuple[list[Tensor], int, bool]:
    """Score frames (H, W, 3), one time after the other: a result, its truth and, where it is given, what it was made from; None where a
    clip has ended. The first of `scorers` takes the result, a second one what it was made from.

    Returns the frames of index `shown` (the last ones of shorter clips), the number of frames, and whether one clip went on longer. Raises
    UserError for frames of different sizes, and for values that are not finite.
    """
    middle: list[Tensor] = []
    count, uneven = 0, False
    for frames in together:
        if uneven := any(frame is None for frame in frames):
            break
        if len({frame.shape for frame in (*frames, *middle)}) != 1:
            raise UserError(f"frames of different sizes after frame {count}: " + ", ".join(map(_size, frames)))
        if not all(torch.isfinite(frame).all() for frame in frames):
            raise UserError(f"frame {count} holds NaN or infinite values, which no measure is made for; replace it or cut it out")
        for i, (scorer, scored) in enumerate(zip(scorers, (frames, frames[:0:-1]))):
            scorer.add(*(x[None] for x in scored), tick=lambda part, i=i, done=count: progress(done + (i + part) / len(scorers)))
        if count <= shown:
            middle = [frame.clone() for frame in frames]
        count += 1
        progress(count)
    return middle, count, uneven


def _of_one_name(clips: Sequence[VideoClip]) -> tuple[list[VideoClip], list[str]]:
    """Folders of pictures that share names, without those that are not in all of them, and what is left out in words.

    Where they share none, and one has fewer, their numbers stand for the names if one's are among the other's (`blur_2` and `gt_0002`).
    """
    from ..media.video import probe

    named: list[dict[str | int, Path]] = [{file.stem: file for file in clip.files} for clip in clips]
    if all(named) and len({*map(len, named)}) > 1 and not set.intersection(*map(set, named)):
        numbered = [{int(found[-1]): file for file in clip.files if (found := re.findall(r"\d+", file.stem))} for clip in clips]
        most = max(numbered, key=len).keys()
        if any(names.keys() - most or len(names) != len(clip.files) for names, clip in zip(numbered, clips)):
            return list(clips), ["the pictures have no names in common and are compared in their order"]
        named = numbered
    shared = [stem for stem in named[0] if all(stem in names for names in named)]
    twice = any(len(names) != len(clip.files) for names, clip in zip(named, clips))
    if not shared or twice or all(list(names)[:len(shared)] == shared for names in named):         # one that is longer is cut
        return list(clips), []
    notes, known = [], set(shared)
    for clip, names in zip(clips, named):
        alone = [file.name for stem, file in names.items() if stem not in known]
        if alone:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            notes.append(f"{clip.path}: {', '.join(alone[:3])}{more} ha{'s' if len(alone) == 1 else 've'} no picture of that name to be "
                         "compared with")
    return [probe([names[stem] for stem in shared]) for names in named], notes


def _of_one_time(readers: Sequence[VideoReader], alone: list[int]) -> Iterator[tuple[Tensor | None, ...]]:
    """The frames of videos of one rate, in step; at the end of the shortest what the others go on with. Those that are shown at a time at
    which not all have one are counted in `alone`."""
    clips = [iter(reader) for reader in readers]
    frames = [next(clip, None) for clip in clips]
    while all(frame is not None for frame in frames):
        numbers = [round(frame.pts * reader.clip.time_base * reader.clip.rate) for frame, reader in zip(frames, readers)]
        early = [i for i, number in enumerate(numbers) if number < max(numbers)]
        if not early:
            yield tuple(frame.rgb for frame in frames)
        for i in early:
            alone[i] += 1
        for i in early or range(len(frames)):
            frames[i] = next(clips[i], None)
    if any(frame is not None for frame in frames):
        yield tuple(None if frame is None else frame.rgb for frame in frames)


def compare(a: str | os.PathLike, b: str | os.PathLike, out_dir: str | os.PathLike, blurred: str | os.PathLike | None = None, *,
            zoom_box: Sequence[int] | None = None, warp: bool = True, perceptual: bool = False,
            say: Callable[[str], None] | None = print) -> dict:
    """Score clip `a` against the truth `b` (video files, or folders and patterns of pictures), and `blurred`, what `a` was made from.

    Streams: memory does not grow with length. Shows its progress and prints a table with `say`, unless that is None; writes `panel.png`
    (Fig. 3), `error_map.png` (Fig. 4), both of the middle frame, `scores.csv` per frame and `scores.json` into `out_dir`. Returns
    {"frames", "lost" of all clips, "scores": {name: means}, "notes", "files"}. Raises UserError for clips that cannot be read or do not fit
    each other.
    """
    from ..media.video import probe, read

    paths = [Path(p) for p in (a, b, *([blurred] if blurred is not None else []))]
    clips, lack = _of_one_name([probe(p) for p in paths])
    if len({(c.width, c.height) for c in clips}) != 1:
        found = ", ".join(f"{path} {clip.width} x {clip.height}" for path, clip in zip(paths, clips))
        raise UserError(f"the clips have frames of different sizes: {found}")
    if zoom_box is not None:
        _check_box(ZoomBox(*zoom_box), clips[0].width, clips[0].height)
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)                 # before the work, not behind it
    except OSError as error:
        raise UserError(f"{out} cannot be made a folder for the figures ({error.strerror})") from None
    readers = [read(c) for c in clips]
    shown = min(c.num_frames for c in clips) // 2
    together, alone = zip_longest(*((frame.rgb for frame in reader) for reader in readers)), [0] * len(readers)
    if len({c.num_frames for c in clips}) > 1 and len({c.rate for c in clips}) == 1 and not any(c.files for c in clips):
        together = _of_one_time(readers, alone)
    bar = FrameBar("comparing", min(c.num_frames for c in clips), quiet=say is None)
    scorers = [metrics.Scorer(warp=warp, perceptual=perceptual, rate=float(clips[0].rate)) for _ in clips[1:]]
    with contextlib.closing(bar):
        middle, count, uneven = compare_frames(scorers, together, shown=shown, progress=bar.to)
    if not count:
        raise UserError(f"{a} and {b} have no frame in common to compare")
    notes = lack + [f"one clip is longer: only the first {count} frames were compared"] * uneven
    notes += [f"{path}: {n} frame{'s' if n > 1 else ''} without another clip's frame of that time {'were' if n > 1 else 'was'} left out"
              for path, n in zip(paths, alone) if n]
    notes += [f"{path}: {note}" for path, reader in zip(paths, readers) for note in reader.notes]
    notes += filter(None, [lpips_note()])
    name = Path(a).name or str(a)
    scores = {title: scorer.result() for title, scorer in zip((name, "blurred input"), scorers)}
    labels = [*(["blurred"] if blurred is not None else []), name, f"truth ({Path(b).name})"]
    files = [save_image(panel(middle[2:] + middle[:2], labels, zoom_box), out / "panel.png"),
             save_image(error_map(*middle[:2]), out / "error_map.png"),
             save_text(frames_csv(scorers[0]), out / "scores.csv")]
    result = {"frames": count, "lost": sum(reader.lost for reader in readers), "scores": scores, "notes": notes,
              "files": [str(f) for f in files]}
    files.append(save_text(json.dumps(result, indent=1), out / "scores.json"))
    result["files"].append(str(files[-1]))
    if say is not None:
        say(measures_table(scores, f"{count} frames"))
        for note in notes:
            say(note)
    return result


def frames_csv(scorer: metrics.Scorer) -> str:
    """A scorer's values per frame as CSV. Measures of pairs of frames stand in the row of the first of the two."""
    columns = [c for c, values in scorer.values.items() if values]
    rows = [["frame", *columns]]
    for i, values in enumerate(zip_longest(*(scorer.values[c] for c in columns))):
        rows.append([str(i), *("" if value is None else f"{value:.6f}" for value in values)])
    return "\n".join(map(",".join, rows))
