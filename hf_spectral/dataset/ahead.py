"""Work on images ahead of the backbone, by threads: results come in order, and are those of a plain loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")
_END: Any = object()


def ahead(function: Callable[[Given], Made], given: Iterable[Given], num_workers: int) -> Generator[Made]:
    """Call a function on each value of an iterable, in threads that are two calls each ahead of the results taken.

    Threads instead of processes: decoding and resizing release Python's lock, any dataset will do (a process would have
    to pickle it), and nothing is forked beside the threads of torch. One further thread alone advances the iterable, so
    that a dataset need not be safe for threads.

    Args:
        function: Called in several threads at once.
        given: The values.
        num_workers: Number of threads that call the function; 0 calls it when a result is asked for, in the thread that
            asks.

    Yields:
        The results, in the order of the values. What the function or the iterable raises is raised in its place. The
        threads end with the generator: calls that have begun are finished, the others are dropped.
    """
    if not num_workers:
        yield from map(function, given)
        return
    values = iter(given)
    waiting: deque[Future[Made]] = deque()
    taking = ThreadPoolExecutor(1, "hf_spectral-take")
    working = ThreadPoolExecutor(num_workers, "hf_spectral-read")

    def submit() -> None:
        taken = taking.submit(next, values, _END)

        def work() -> Made:
            value: Any = taken.result()
            made: Made = _END if value is _END else function(value)
            return made

        waiting.append(working.submit(work))

    try:
        for _ in range(2 * num_workers):
            submit()
        while (made := waiting.popleft().result()) is not _END:
            submit()
            yield made
    finally:
        for threads in (taking, working):
            threads.shutdown(cancel_futures=True)
