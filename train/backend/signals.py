"""SIGTERM and SIGINT end a run cleanly."""
from __future__ import annotations

import signal
import threading
from collections.abc import Callable


class StopSignal:
    """While entered, true from the first SIGTERM or SIGINT on; a second one raises KeyboardInterrupt at once."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.asked, self.handlers = say, False, {}

    def __bool__(self) -> bool:
        return self.asked

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():            # others may not set handlers
            self.handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("stopping after this step; once more to stop at once")
