"""Small helpers for node schemas that run on every ComfyUI with V3 nodes."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable

from comfy_api.latest import io

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


def seed_input(tooltip: str = "The noise. A pixel of a frame gets the same noise whatever the window, tile or start frame.") -> io.Input:
    """The usual seed widget. A new node's seed stays fixed, so that the next Run finds or goes on with what this one made; hosts before
    io.ControlAfterGenerate start at "randomize" whatever a node says."""
    control = getattr(io, "ControlAfterGenerate", None)
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=control.fixed if control else True,
                        tooltip=tooltip)
