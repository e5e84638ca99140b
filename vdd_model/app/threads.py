"""Reading ahead and writing behind: bounded queues between the decoder, the model and the encoder."""
from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_END = object()


def read_ahead(items: Iterable, depth: int) -> Iterator:
    """The same items, made by another thread at most `depth` ahead. An exception is raised where the item would have come.

    Closing the iterator stops the thread and waits for it.
    """
    waiting: queue.Queue = queue.Queue(max(1, depth))
    stop = threading.Event()

    def put(entry) -> bool:
        while not stop.is_set():
            try:
                waiting.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put((item, None)):
                    break
            else:
                put((_END, None))
        except BaseException as error:
            put((_END, error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=work, name="reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join()


class WriteBehind:
    """Calls `write(*item)` in another thread, in order, at most `depth` items behind.

    An error of the writer is raised by the next `put` or by `close`.
    """

    def __init__(self, write: Callable[..., Any], depth: int = 2):
        self._write = write
        self._queue: queue.Queue = queue.Queue(max(1, depth))
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (item := self._queue.get()) is not _END:
            if self._error is None:
                try:
                    self._write(*item)
                except BaseException as error:
                    self._error = error

    def put(self, *item) -> None:
        """Hand over one item; waits while the queue is full."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def close(self, *, wait_for_all: bool = True) -> None:
        """Write what is queued, stop the thread, raise its error if there was one. After an interruption what is queued is
        written too, so that nothing computed is lost, but an error is not raised a second time.
        """
        self._queue.put(_END)
        self._thread.join()
        if self._error is not None and wait_for_all:
            raise self._error
