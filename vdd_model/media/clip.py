"""What is known of a clip (`VideoClip`) and one of its pictures (`Frame`)."""
from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch

from ..errors import UserError
from .pixel_formats import UNSPECIFIED, ColorTags


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
class VideoClip:
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
    first_says: tuple[int, int] = (UNSPECIFIED, 0)           # matrix and range by which the first frame calls itself, for those that follow
    codec: str = ""
    pix_fmt: str = ""
    quarter_turns: int = 0                  # counter-clockwise, applied by the reader
    mirrored: bool = False                  # left and right are swapped after that, by the reader too
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)           # rows and columns left away at top, bottom, left, right, before all that
    chroma: str = "left"                    # where 4:2:0's samples lie, see `pixel_formats.CHROMA`
    pixel_aspect: Fraction = Fraction(1)
    files: tuple[Path, ...] = ()            # the pictures of a sequence; empty for a video file
    sound: tuple[str, ...] = ()             # codec of each audio and subtitle stream
    metadata: tuple[tuple[str, str], ...] = ()
    track: tuple[tuple[str, str], ...] = ()                  # title, language and the like of the video's own track
    timecode: str = ""                      # of the first frame, hh:mm:ss:ff, or ;ff for drop frame
    chapters: tuple[tuple[Fraction, Fraction, str], ...] = ()          # (start, end, title), seconds in the file
    png_chunks: bytes = b""                 # of a picture sequence: what its colors mean, as PNG says it
    light: str = ""                         # mastering display and content light level as libx265 takes them
    extras: tuple[str, ...] = ()            # what else is in the file and has no place in an output, in words
    telemetry: tuple[str, ...] = ()         # streams of data that .mp4 and .mov take over, in words
    attached: tuple[str, ...] = ()          # names of attached files
    hold: int = 0                           # ticks for which the last frame is shown: nothing else tells its end; 0: as any other
    origin: Fraction = Fraction(0)          # seconds of the first frame in the file
    shift: Fraction = Fraction(0)           # seconds taken off every stream so that the output starts at 0
    joins: tuple[Fraction, ...] = ()        # of a file joined by copying: seconds to add to the times behind each place
    interlaced: bool = False
    headless: int = 0                       # packets before the first key frame, of which no picture may come
    remarks: tuple[str, ...] = ()           # what is to be said of the clip whatever is made of it
    untimed: bool = False                   # the file carries no usable times: frames are counted instead
    slotted: bool = False                   # its times, as an AVI's, are those of decoding: frames take them in the order they are shown
    size_bytes: int = 0
    missing: int = 0                        # frames that the header promises and the file does not hold, as far as known
    breaks_off: str = ""                    # the same in words

    @property
    def coded_size(self) -> tuple[int, int]:
        """(width, height) as the decoder gives the pictures: neither cropped nor turned."""
        top, bottom, left, right = self.crop
        width, height = (self.height, self.width) if self.quarter_turns % 2 else (self.width, self.height)
        return width + left + right, height + top + bottom
