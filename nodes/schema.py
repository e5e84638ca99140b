"""Small helpers for node schemas that run on every ComfyUI with V3 nodes."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

from comfy_api.latest import io

from ..vdd_model.options import FIELDS, DeblurOptions

CATEGORY = "video/deblur"
Encoders = io.Custom("VDD_ENCODERS")


def schema(**keywords) -> io.Schema:
    """io.Schema without the keywords that this ComfyUI does not know yet (search_aliases came in 0.11.0)."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(category=CATEGORY, **{k: v for k, v in keywords.items() if k in known})


def advanced(make: Callable[..., io.Input], *args, **keywords) -> io.Input:
    """An input that may be left out, and that newer hosts (0.10.0) fold away under "advanced"."""
    try:
        return make(*args, optional=True, advanced=True, **keywords)
    except TypeError:
        return make(*args, optional=True, **keywords)


def option_input(name: str, fold: bool | None = None, **changes) -> io.Input:
    """The widget of an option of DeblurOptions, folded away where it says so itself or `fold` does; `changes` are to its keywords.
    What may be left open has -1 for that."""
    default, option = FIELDS[name].default, FIELDS[name].metadata["option"]
    keywords = {"default": default, "tooltip": option.help}
    if option.choices:
        make, keywords["options"] = io.Combo.Input, list(option.choices)
    elif isinstance(default, bool):
        make = io.Boolean.Input
    else:
        make = io.Float.Input if isinstance(default, float) else io.Int.Input
        keywords |= dict(zip(("min", "max", "step"), option.widget))
        if option.unset:
            keywords |= {"default": -1, "min": -1, "tooltip": f"{option.help} -1: {option.unset}."}
    keywords |= changes
    return advanced(make, name, **keywords) if (option.advanced if fold is None else fold) else make(name, **keywords)


def options_from(**widgets) -> DeblurOptions:
    """The options that these widgets say. Raises ConfigError."""
    return DeblurOptions(**{name: None if value == -1 and FIELDS[name].default is None else value for name, value in widgets.items()})


def seed_input(tooltip: str = FIELDS["seed"].metadata["option"].help) -> io.Input:
    """The usual seed widget. A new node's seed stays fixed, so that the next Run finds or goes on with what this one made; hosts before
    io.ControlAfterGenerate start at "randomize" whatever a node says."""
    control = getattr(io, "ControlAfterGenerate", None)
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=control.fixed if control else True,
                        tooltip=tooltip)
