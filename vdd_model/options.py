"""How a clip is deblurred: every option once, with its default, its range and its help.

The checks, the command line's flags and the nodes' widgets are made of what stands here. Nothing heavy is imported.
"""
from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass, field

from .config import ConfigError, DiffusionConfig

VGEN_MIN_STEPS = 4       # from here on the first timestep of "vgen" is nearly all noise, as what sampling starts from is


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its default."""

    help: str                                       # sentences
    low: float | None = None                        # what lies outside of low..high is refused
    high: float | None = None
    choices: tuple[str, ...] = ()
    file_means: str = ""                            # the choice that a file's name stands for on the command line
    unset: str = ""                                 # what happens where it is left open (None)
    widget: tuple[float, float, float] = (0, 1, 1)  # of a node: smallest and largest value, step
    advanced: bool = False                          # a node folds it away
    group: str = "model"                            # heading on the command line

    def allowed(self, value) -> str:
        """What `value` should have been, "" where it is all right."""
        if value is None and self.unset or isinstance(value, bool):
            return ""
        if self.choices:
            return "" if value in self.choices else " or ".join(self.choices)
        if isinstance(value, tuple):
            usable = len(value) == 2 and value[1] >= 0 and value[0] <= min(value[1], 1)
            return "" if usable else "two numbers between 0 and 1, the lower one first"
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        if isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high:
            return ""
        return "a finite number" if self.low is None else f"at least {low}" if self.high is None else f"between {low} and {high}"


def _option(default, help: str, **facts):
    return field(default=default, metadata={"option": Option(help, **facts)})


WORK = "memory and speed"


@dataclass(frozen=True)
class DeblurOptions:
    """How a clip is deblurred. The defaults give the posterior mean: one step, no guidance, the best PSNR. Raises ConfigError."""

    steps: int = _option(1, "1: the posterior mean, most faithful and fastest. 20 to 50: one sharp sample, as in the paper.",
                         low=1, high=DiffusionConfig().num_timesteps, widget=(1, 1000, 1))
    denoise_at_one_step: bool = _option(False, "Call the UNet for one step too: more than a third of the work, for 0.01 dB.", advanced=True)
    guidance: float = _option(1.0, "Classifier-free guidance. 1: none, and half the work.", widget=(0.0, 20.0, 0.1))
    guidance_rescale: float = _option(0.0, "How far guidance above 1 is kept from raising the contrast.",
                                      low=0, high=1, widget=(0.0, 1.0, 0.05), advanced=True)
    guidance_interval: tuple[float, float] = _option((0.0, 1.0), "Guide only between these noise levels (0 is clean, 1 is noise).")
    eta: float = _option(0.0, "0: deterministic (DDIM). 1: ancestral.", low=0, high=1, widget=(0.0, 1.0, 0.05))
    spacing: str = _option("trailing", "Which timesteps are visited. trailing: evenly, from pure noise on. vgen: as the official sampler "
                                       f"does, from {VGEN_MIN_STEPS} steps on.", choices=("trailing", "vgen"), advanced=True)
    fidelity: float = _option(1.0, "0: the latents alone. 1: edges and details from the blurred frames where they have them.",
                              low=0, high=1, widget=(0.0, 1.0, 0.05))
    seed: int = _option(0, "The noise. A pixel of a frame gets the same noise whatever the window, tile or start frame.")
    window: int = _option(16, "Frames deblurred together; 16 is the paper's window.", low=1, widget=(1, 1000, 1), advanced=True, group=WORK)
    overlap: int = _option(4, "Frames that neighbouring windows share and blend over; at most half a window is used.",
                           low=0, widget=(0, 500, 1), advanced=True, group=WORK)
    tile: int | None = _option(None, "Side of a tile in pixels, to save memory; 0: whole frames.",
                               low=0, unset="chosen by the frame size", widget=(0, 8192, 1), advanced=True, group=WORK)
    tile_overlap: int | None = _option(None, "Pixels that neighbouring tiles share and blend over.",
                                       low=0, unset="chosen by the tile size", widget=(0, 1024, 1), advanced=True, group=WORK)
    color: str = _option("wavelet", "wavelet: large areas whose brightness or color has drifted from the input are brought back.",
                         choices=("wavelet", "none"))
    ensemble: int | None = _option(None, "With one step: the mean over so many orientations (mirrored, turned). More faithful still, as "
                                         "many times the work. 8: the prior's frames too, over 2, unless they are given.",
                                   low=1, high=8, widget=(1, 8, 1), advanced=True,
                                   unset="4 beside the prior, which takes longer than all of them, else 1")
    scenes: str = _option("auto", "auto: hard cuts are found, and no frame is mixed with those of another scene. off: all is one scene.",
                          choices=("auto", "off"), advanced=True)
    repeats: str = _option("auto", "auto: frames that show the one before again are found and deblurred once. off: each for itself.",
                           choices=("auto", "off"), advanced=True)

    prior: str = _option("auto", "A pretrained network for photographs (MAXIM) helps: single pictures and long blur become much sharper; "
                                 "on a CPU a clip takes more than 20 times as long. auto: where its file is there, on a GPU, "
                                 "and on a CPU for one or two frames.", choices=("auto", "none", "maxim"), file_means="maxim")
    temporal_fusion: str = _option("auto", "With one step: each frame is joined with its neighbours, moved along the optical flow. More "
                                           "faithful and steadier; on a CPU a clip without the prior takes twice to three times as long. "
                                           "auto: beside the prior. on: without the prior too.",
                                   choices=("auto", "on", "off"), advanced=True)

    def __post_init__(self):
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            allowed = each.metadata["option"].allowed(value)
            if allowed:
                raise ConfigError(f"{each.name} must be {allowed}, not {value!r}")
        if self.spacing == "vgen" and self.steps < VGEN_MIN_STEPS:
            raise ConfigError(f"steps must be at least {VGEN_MIN_STEPS} with the spacing 'vgen', not {self.steps}")
        if (self.ensemble or 1) > 1 and self.steps > 1:
            raise ConfigError(f"ensemble must be 1 with more than one step, whose detail a mean of several loses, not {self.ensemble}")
        if self.temporal_fusion == "on" and (self.steps > 1 or self.guidance != 1 or self.denoise_at_one_step):
            raise ConfigError("temporal_fusion must be auto or off with more than one step, guidance or denoise_at_one_step, where every "
                              "frame has a detail of its own that a mean over time loses, not 'on'")

    @property
    def stride(self) -> int:
        """Frames from the start of one window to the start of the next."""
        return self.window - self.shared

    @property
    def shared(self) -> int:
        """Frames that neighbouring windows share."""
        return min(self.overlap, self.window // 2)


FIELDS = {each.name: each for each in dataclasses.fields(DeblurOptions)}


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """A flag for each of these options, by default for all, under its heading."""
    groups = {}
    for name in names or FIELDS:
        option, default = FIELDS[name].metadata["option"], FIELDS[name].default
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        settings = {"default": default}
        if isinstance(default, bool):
            settings["action"] = "store_true"
        elif isinstance(default, tuple):
            settings |= {"nargs": len(default), "type": float, "metavar": ("LOW", "HIGH")}
        else:
            settings |= {"type": int if default is None else type(default), "choices": option.choices or None}
        if option.file_means:
            settings |= {"choices": None, "metavar": "|".join([*option.choices, "FILE"])}
        text = option.help.replace("%", "%%") + ("" if isinstance(default, bool) else f" Default: {option.unset or default}.")
        groups[option.group].add_argument(f"--{name.replace('_', '-')}", help=text, **settings)


def from_flags(arguments: argparse.Namespace) -> DeblurOptions:
    """The options of a parsed command line; those that it has no flag for keep their defaults. Raises ConfigError."""
    given = {name: value for name, value in vars(arguments).items() if name in FIELDS}
    for name, value in given.items():
        option = FIELDS[name].metadata["option"]
        given[name] = option.file_means if option.file_means and value not in option.choices else value
    return DeblurOptions(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
