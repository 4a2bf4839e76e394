"""Counts what makes the host wait for a GPU: on one, what torch warns of; on the CPU, the operations that would."""

from __future__ import annotations

import collections
import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu.simulated import WAITS

# Calls that leave no trace among the operations where the numbers lie on the CPU already.
_CALLS = {
    torch.Tensor.cpu: "cpu",
    torch.Tensor.numpy: "numpy",
    torch.Tensor.tolist: "tolist",
    torch.Tensor.cuda: "cuda",
}


class _Operations(TorchDispatchMode):
    def __init__(self, counts: collections.Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in WAITS:
            self._counts[func._overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, counts: collections.Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CALLS:
            self._counts[_CALLS[func]] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_waits(device: str) -> Iterator[collections.Counter[str]]:
    """Count inside the block.

    Args:
        device: Where the code runs.

    Yields:
        How often, by reason; complete when the block ends.
    """
    counts: collections.Counter[str] = collections.Counter()
    if not device.startswith("cuda"):
        with _Operations(counts), _Calls(counts):
            yield counts
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one in caught:
        if "synchroniz" in str(one.message):
            counts[f"{one.filename.rpartition('/')[2]}:{one.lineno}"] += 1
