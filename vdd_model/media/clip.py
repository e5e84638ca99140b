"""What is known of a clip (`Clip`) and one of its pictures (`Frame`)."""
from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch

from ..errors import UserError
from .pixel_formats import ColorTags


class MediaError(UserError):
    """A clip that cannot be read or written as asked; the message is one sentence for the user."""


@dataclass
class Frame:
    """One picture: `rgb` (H,W,3) and `alpha` (H,W) or None, float32 in [0,1]; `pts` and `duration` in the clip's `time_base`."""

    rgb: torch.Tensor
    alpha: torch.Tensor | None
    pts: int
    duration: int
    index: int


@dataclass(frozen=True)
class Clip:
    """What is known of an input before its frames are read. Width and height are upright (rotation applied)."""

    path: Path
    width: int
    height: int
    num_frames: int                         # by the file's own count; the reader may find fewer
    rate: Fraction                          # frames per second
    time_base: Fraction                     # seconds per tick of Frame.pts
    constant_rate: bool = True
    bit_depth: int = 8
    has_alpha: bool = False
    gray: bool = False
    color: ColorTags = field(default_factory=ColorTags)      # complete: the matrix that is really used
    codec: str = ""
    pix_fmt: str = ""
    quarter_turns: int = 0                  # counter-clockwise, applied by the reader
    mirrored: bool = False                  # left and right are swapped after that, by the reader too
    pixel_aspect: Fraction = Fraction(1)
    files: tuple[Path, ...] = ()            # the pictures of a sequence; empty for a video file
    sound: tuple[str, ...] = ()             # codec of each audio and subtitle stream
    metadata: tuple[tuple[str, str], ...] = ()
    timecode: str = ""                      # of the first frame, hh:mm:ss:ff, or ;ff for drop frame
    chapters: tuple[tuple[Fraction, Fraction, str], ...] = ()          # (start, end, title), seconds in the file
    png_chunks: bytes = b""                 # of a picture sequence: what its colours mean, as PNG says it
    light: str = ""                         # mastering display and content light level as libx265 takes them
    extras: tuple[str, ...] = ()            # what else is in the file and has no place in an output, in words
    attached: tuple[str, ...] = ()          # names of attached files
    origin: Fraction = Fraction(0)          # seconds of the first frame in the file
    shift: Fraction = Fraction(0)           # seconds taken off every stream so that the output starts at 0
    joins: tuple[Fraction, ...] = ()        # of a file joined by copying: seconds to add to the times behind each place
    interlaced: bool = False
    untimed: bool = False                   # the file carries no usable times: frames are counted instead
    size_bytes: int = 0
    missing: int = 0                        # frames that the header promises and the file does not hold, as far as known
    breaks_off: str = ""                    # the same in words

    @property
    def is_sequence(self) -> bool:
        """Whether the clip is a row of picture files."""
        return bool(self.files)

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.num_frames / self.rate)
