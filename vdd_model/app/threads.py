"""Reading ahead and writing behind: one thread each beside the decoder, the model and the encoder."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_END = object()


def read_ahead(items: Iterable, depth: int) -> Iterator:
    """The same items, made by another thread at most `depth` ahead. An exception is raised where the item would have come.

    Closing the iterator stops the thread and waits for it.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, "reader")
    try:
        waiting = deque(pool.submit(next, iterator, _END) for _ in range(max(1, depth)))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, iterator, _END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        if hasattr(iterator, "close"):
            iterator.close()


class WriteBehind:
    """Calls `write(*item)` in another thread, in order, at most `depth` items behind.

    An error of the writer is raised by the next `put` or by `close`; nothing is written after it.
    """

    def __init__(self, write: Callable[..., Any], depth: int = 2):
        self._write, self._depth = write, depth
        self._pool, self._waiting = ThreadPoolExecutor(1, "writer"), deque[Future]()
        self._error: BaseException | None = None

    def _work(self, *item) -> None:
        if self._error is None:
            try:
                self._write(*item)
            except BaseException as error:
                self._error = error

    def put(self, *item) -> None:
        """Hand over one item; waits while more than `depth` are not written yet."""
        if self._error is not None:
            raise self._error
        self._waiting.append(self._pool.submit(self._work, *item))
        del item
        while len(self._waiting) > self._depth:
            self._waiting.popleft().result()

    def close(self, *, wait_for_all: bool = True) -> None:
        """Write what is queued, stop the thread, raise its error if there was one. After an interruption what is queued is
        written too, so that nothing computed is lost, but an error is not raised a second time.
        """
        self._pool.shutdown()
        if self._error is not None and wait_for_all:
            raise self._error
