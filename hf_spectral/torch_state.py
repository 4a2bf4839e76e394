"""Isolation from the caller's settings of torch (autocast, precision, default device): they never change a result."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Precisions of float32 products are settings of the whole process: the first thread that needs full precision sets it,
# the last one puts back what was there.
_lock = threading.Lock()
_num_users = 0
_restores: list[Callable[[], None]] = []


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Run a block, or as a decorator a function, as torch would run it in a fresh program, without gradients.

    Inside, autocast and inference mode are off, new tensors lie on the CPU unless a device is named, and products of
    float32 numbers are made in float32 (`torch.set_float32_matmul_precision`, `torch.backends.mkldnn`). The default
    dtype, which all threads share, is left alone: our code names every dtype.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device_type in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.callback(_leave_full_precision)
        _enter_full_precision()
        yield


def with_float64(device: torch.device) -> torch.device:
    """Return where sums that need float64 are made.

    Args:
        device: Where the numbers come from.

    Returns:
        The device; the CPU for one that has no float64, or holds no numbers.
    """
    return torch.device("cpu") if device.type in ("mps", "meta") else device


def _enter_full_precision() -> None:
    global _num_users
    with _lock:
        _num_users += 1
        if _num_users == 1:
            _restores.extend(_raise_precision())


def _leave_full_precision() -> None:
    global _num_users
    with _lock:
        _num_users -= 1
        while _restores and not _num_users:
            _restores.pop()()


def _raise_precision() -> Iterator[Callable[[], None]]:
    """Set full precision where a lower one is set, yielding before each change what undoes it."""
    backends: Any = torch.backends
    if not hasattr(backends.mkldnn, "matmul"):  # Before torch 2.9.
        if (before := torch.get_float32_matmul_precision()) != "highest":
            yield lambda: torch.set_float32_matmul_precision(before)
            torch.set_float32_matmul_precision("highest")
        if allowed := backends.cudnn.allow_tf32:
            yield lambda: setattr(backends.cudnn, "allow_tf32", allowed)
            backends.cudnn.allow_tf32 = False
        return
    # A GPU makes convolutions in TF32 unless told otherwise.
    for backend in (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul, backends.cudnn.conv):
        if (lower := backend.fp32_precision) not in ("none", "ieee"):
            yield functools.partial(setattr, backend, "fp32_precision", lower)
            backend.fp32_precision = "ieee"
