"""What a run's configuration says of synthesised blur (`data.blur`, `stages.N.blur`)."""
from __future__ import annotations

from dataclasses import dataclass, fields

from vdd_model.config import ConfigError

LOGARITHMIC = ("extent", "duty", "scale", "exposure", "layer_size", "relief_size", "relief_motion")
LENGTHS = ("max_step", "sub_step", "shot", "read")       # numbers that are no probabilities


@dataclass(frozen=True)
class BlurConfig:
    """The distribution of synthesised clips. Ranges are (low, high); lengths in output pixels."""

    extent: tuple[float, ...] = (1.0, 40.0)              # mean blur of a clip, log-uniform
    near_sharp: float = 0.15                             # share of clips below one pixel
    duty: tuple[float, ...] = (0.25, 1.0)                # exposure / frame interval
    kinks: float = 0.4                                   # share of motions that turn in the middle of an exposure; others are smooth
    relief: float = 0.75                                 # probability that the background is no plane: nearer parts move more
    relief_size: tuple[float, ...] = (14.0, 48.0)        # of its bumps; larger ones where they move far
    relief_motion: tuple[float, ...] = (0.08, 0.8)       # their motion (root mean square) / mean blur
    max_step: float = 56.0                               # travel per frame interval; longer blurs take a longer shutter
    sub_step: float = 1.0                                # pixels between sub-samples
    max_subsamples: int = 121
    scale: tuple[float, ...] = (0.25, 0.7)               # output pixels per photograph pixel, log-uniform
    candidates: int = 3                                  # up to so many places are drawn, the most detailed is taken
    linear: float = 0.7                                  # share of clips averaged in linear light; the others in sRGB
    exposure: tuple[float, ...] = (0.7, 1.3)             # brightness of the scene, linear light
    saturation: float = 0.5                              # probability that clipped highlights hide more light (linear clips)
    highlight: tuple[float, ...] = (0.25, 1.75)          # how much more
    layers: float = 0.6                                  # probability of moving layers
    layer_counts: tuple[float, ...] = (0.5, 0.25, 0.15, 0.1)   # of 1, 2, 3, 4 layers
    layer_size: tuple[float, ...] = (0.25, 1.1)          # of the crop
    noise: float = 0.8                                   # probability
    shot: float = 8.9e-5                                 # variance per unit of light
    read: float = 2.9e-5                                 # standard deviation
    noise_gain: tuple[float, ...] = (0.5, 1.5)
    codec: float = 0.5                                   # probability
    quality: tuple[float, ...] = (60.0, 95.0)            # JPEG
    h264: float = 0.0                                    # share of coded clips that pass through a real encoder (slow)
    crf: tuple[float, ...] = (18.0, 32.0)
    cut: int = 1                                         # scenes of cut x cut the area are cut into samples: fewer kernel launches
    single: float = 0.0                                  # share of samples whose frames all show one exposure: a photograph
    repeats: float = 0.0                                 # share of samples that show every exposure several times
    repeat_lengths: tuple[int, ...] = (2, 3, 5)          # how often, one of these for a sample
    hard_cuts: float = 0.0                               # share of all but single ones that go on with another scene behind a hard cut
    still: float = 0.0                                   # share of scenes before a camera that stands still: only things move
    gopro: float = 0.0                                   # share of scenes blurred as GoPro's pairs: averaged in sRGB over whole frame
                                                         # intervals, without noise and codec

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "tuple[float, ...]" and each.name != "layer_counts":
                if len(value) != 2 or not 0 <= value[0] <= value[1] or each.name in LOGARITHMIC and value[0] == 0:
                    raise ConfigError(f"blur.{each.name}: two numbers (low, high) above 0 are needed, found {list(value)}")
            elif each.type == "float" and each.name not in LENGTHS and not 0 <= value <= 1:
                raise ConfigError(f"blur.{each.name}: a probability in [0, 1] is needed, found {value}")
        if self.single + self.repeats > 1:
            raise ConfigError(f"blur.single and blur.repeats are shares of one whole, found {self.single} and {self.repeats}")
        if not self.repeat_lengths or min(self.repeat_lengths) < 2:
            raise ConfigError(f"blur.repeat_lengths: whole numbers of at least 2 are needed, found {list(self.repeat_lengths)}")
        positive = (self.sub_step, self.max_subsamples, self.max_step, self.candidates, self.cut, sum(self.layer_counts))
        if min(positive) <= 0 or min(self.shot, self.read, *self.layer_counts) < 0:
            raise ConfigError("blur: sub_step, max_subsamples, max_step, candidates, cut and layer_counts must be positive, and shot and "
                              "read not negative")
