"""What the user is to read: notices on the node itself, and errors under their own names."""
from __future__ import annotations

import logging
import re

from ..vdd_model.errors import UserError

_marked: set[str] = set()         # nodes that show notices of an earlier run


def name_errors_plainly() -> None:
    """Hosts title an error `module.Name`, here with the whole path of the installation, but leave out the module `builtins`."""
    def rename(kind: type, **_) -> None:
        kind.__module__ = "builtins"
        for each in kind.__subclasses__():
            rename(each)

    UserError.__init_subclass__ = classmethod(rename)          # of those that are imported later
    rename(UserError)


class Notices:
    """Sentences about one run of a node: shown on the node, where the host can, and in the log. Calling it adds one. Hosts show about
    two lines: what counts stands in front, a file's name behind."""

    def __init__(self):
        self.lines: list[str] = []
        self.node = getattr(_running(), "node_id", None)
        if self.node in _marked:
            self._show()

    def __call__(self, text: str, level: int = logging.WARNING) -> None:
        if text not in self.lines:
            self.lines.append(text)
            logging.log(level, text)
            self._show()

    def _show(self) -> None:
        try:
            from server import PromptServer
            PromptServer.instance.send_progress_text("\n".join(self.lines), self.node)
        except (ImportError, AttributeError):                  # no server, or an older one
            return
        (_marked.add if self.lines else _marked.discard)(self.node)


def without_flags(text: str) -> str:
    """What the package says, for people who have no command line at hand: a node goes on by itself, and other flags are of `vdd deblur`."""
    text = re.sub(" with --resume(?! --)", "", text)
    return text + " (with `vdd deblur` on a command line)" * (" --" in text and "ComfyUI" not in text)


def _running():
    """What is being run, or None: its `prompt_id` and `node_id`. (A hidden input with the node's id would be part of the cache's key.)"""
    try:
        from comfy_execution.utils import get_executing_context
        return get_executing_context()
    except ImportError:
        return None


def prompt_id() -> str | None:
    """The run of the graph that this is part of."""
    return getattr(_running(), "prompt_id", None)


def sampled_by(prompt: dict | None, entry: str) -> str:
    """Which sampler and scheduler of the graph made what arrives at the input `entry` of this node, in words; "" where none is found."""
    found, seen, waiting = {}, set(), [[getattr(_running(), "node_id", None)]]
    while waiting and len(found) < 2:
        node = waiting.pop(0)[0]
        if node in seen or node not in (prompt or {}):
            continue
        inputs = prompt[node]["inputs"]
        for key, word in (("sampler_name", "sampler"), ("scheduler", "scheduler")):
            if isinstance(inputs.get(key), str):
                found.setdefault(word, inputs[key])
        waiting += [link for key, link in inputs.items() if isinstance(link, list) and (seen or key == entry)]
        seen.add(node)
    return " and ".join(f"{word} {found[word]!r}" for word in ("sampler", "scheduler") if word in found)
