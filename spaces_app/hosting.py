"""A GPU for the functions of a Space on ZeroGPU, and mistakes of visitors shown as sentences."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gradio as gr

from hf_spectral import HFSpectralError

#: Seconds for which a call asks for a GPU of ZeroGPU: the fewer, the earlier it gets one.
GPU_SECONDS = 60
_logger = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., Any])


@contextlib.contextmanager
def friendly() -> Iterator[None]:
    """Show a visitor's mistake as one sentence."""
    try:
        yield
    except HFSpectralError as error:
        raise gr.Error(str(error), duration=15, title="That did not work", print_exception=False) from error


def on_gpu(function: _Function) -> _Function:
    """Return a function that has a GPU while it runs, in a Space on ZeroGPU; anywhere else the function itself.

    ZeroGPU runs it in a fork of the process: arguments and result are pickled, what it changes is lost, a lock that the
    process holds stays locked there, and of its errors only those of gradio keep their message.

    Args:
        function: The function.

    Returns:
        The function wrapped in `spaces.GPU`, or unchanged.
    """
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):
        return function
    try:
        import spaces
    except ImportError:
        _logger.warning("ZeroGPU without the package `spaces`: everything runs on the CPU.")
        return function
    return spaces.GPU(duration=GPU_SECONDS)(friendly()(function))
