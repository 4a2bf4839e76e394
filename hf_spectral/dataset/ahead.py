"""Work on images ahead of the backbone, by threads: results come in order, and are those of a plain loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")
_END: Any = object()


class Ahead:
    """Threads that call a function on what an iterator gives, two calls per thread ahead of who takes the results.

    Threads instead of processes: decoding and resizing release Python's lock, any dataset will do (a process would have
    to pickle it), and nothing is forked beside the threads of torch. The iterator is advanced by one thread alone, so
    that a dataset need not be safe for threads.

    Args:
        num_workers: Number of threads that call the function; 0 calls it when a result is asked for, in the thread that
            asks.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._taking = ThreadPoolExecutor(1, "hf_spectral-take")
        self._working = ThreadPoolExecutor(max(num_workers, 1), "hf_spectral-read")

    def map(self, function: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
        """Call a function on each value.

        Args:
            function: Called in several threads at once.
            given: The values.

        Yields:
            The results, in the order of the values.

        Raises:
            BaseException: What the function or the iterator raises, in its place in the order.
        """
        if not self._num_workers:
            yield from map(function, given)
            return
        values = iter(given)
        waiting: deque[Future[Made]] = deque()

        def submit() -> None:
            taken = self._taking.submit(next, values, _END)

            def work() -> Made:
                value: Any = taken.result()
                made: Made = _END if value is _END else function(value)
                return made

            waiting.append(self._working.submit(work))

        try:
            for _ in range(2 * self._num_workers):
                submit()
            while (made := waiting.popleft().result()) is not _END:
                submit()
                yield made
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the threads; what they are at is finished first, what waits is dropped."""
        for threads in (self._taking, self._working):
            threads.shutdown(cancel_futures=True)
