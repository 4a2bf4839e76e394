"""Runs the projections of a backbone's attention layers on a few fixed vectors, to tell its weights from others."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_spectral.capture.base import host_of
from hf_spectral.fingerprint import describe_answer, probes
from hf_spectral.restoring import evaluation_mode

_logger = logging.getLogger(__name__)


@torch.no_grad()
def attention_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Describe the weights of the attention layers that a capture reads, whatever form they are kept in.

    Each projection is run on fixed vectors, and what it answers is described by a few numbers. As the projection itself
    is run, adapters and quantization are seen as they act. The model keeps its mode, and no hook of a user is called.

    Args:
        model: A model that `check_supported` accepts.

    Returns:
        JSON values: `dtype`, in which they multiply, and `projections`, for each qualified name the text that
        `fingerprint.describe_answer` gives; "" stands for a projection that could not be run, such as one that is
        sharded or on the meta device.
    """
    tower, layers = host_of(model).attention(model)
    dtype: torch.dtype = tower.dtype
    found: dict[str, str] = {}
    with evaluation_mode(tower):
        for layer in layers:
            for name, child in _projections(layer.module, layer.projections):
                answer = _answer(child, dtype)
                found[f"{layer.name}.{name}"] = "" if answer is None else describe_answer(answer)
    unread = [name for name, numbers in found.items() if not numbers]
    if unread:
        _warn_once(type(model).__name__, unread[0], len(unread))
    # Set to "medium", torch rounds float32 to bfloat16 before it multiplies.
    is_rounded = dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
    return {"dtype": str(torch.bfloat16 if is_rounded else dtype).removeprefix("torch."), "projections": found}


def _projections(module: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the named projections, in whatever they are wrapped, and all other linear maps beside them."""
    for name, child in module.named_children():
        if name in names or isinstance(getattr(child, "in_features", None), int):
            yield name, child


def _answer(projection: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """Return what a projection makes of the probes, or None if it cannot be run alone."""
    parts = (getattr(module, "in_features", None) for module in projection.modules())
    width = next((part for part in parts if isinstance(part, int)), None)
    if width is None:
        return None
    held = [*projection.parameters(), *projection.buffers()]
    # What is offloaded lies on the device "meta" until its hook, inside `forward`, brings it to where it computes.
    device = next((one.device for one in held if not one.is_meta), torch.device("cpu"))
    vectors = probes(width).to(device, next((one.dtype for one in held if one.is_floating_point()), dtype))
    try:
        # Not the call itself: it would run the hooks of users. A caller's autocast is kept out.
        answer = torch.autocast(device.type, enabled=False)(projection.forward)(vectors)
        return None if answer.is_meta else answer
    except (RuntimeError, TypeError):
        return None


@functools.cache
def _warn_once(model: str, name: str, count: int) -> None:
    _logger.warning(
        "%d projections of %s cannot be run alone (%s ...): that a basis belongs to their weights is not checked.",
        count,
        model,
        name,
    )
