"""Identify the weights of a backbone: its attention projections are run on a few fixed vectors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from hf_spectral.capture.base import host_of
from hf_spectral.fingerprint import describe_answers, probes, sampled
from hf_spectral.restoring import evaluation_mode

_logger = logging.getLogger(__name__)


@torch.no_grad()
def attention_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Describe the weights of a backbone: of the attention layers that a capture reads, whatever form they are kept in.

    Each projection is run on fixed vectors, and its outputs are described by a few numbers, so that adapters and
    quantization count as they act. Each other weight, on which the records depend as well, is described by a sample.
    The model keeps its mode, and no hook of a user is called.

    Args:
        model: A model that `check_supported` accepts.

    Returns:
        JSON values: `dtype`, in which they multiply, `projections`, for each qualified name the text that
        `fingerprint.describe_answers` gives, and `others`, the same for each other weight of the tower; "" stands for
        what could not be run or read, such as what is sharded or on the meta device.
    """
    tower, layers = host_of(model).attention(model)
    dtype: torch.dtype = tower.dtype
    found: dict[str, str] = {}
    probed: set[nn.Module] = set()
    with evaluation_mode(tower):
        for layer in layers:
            for name, child in _projections(layer.module, layer.projections):
                answer = _answer(child, dtype)
                found[f"{layer.name}.{name}"] = "" if answer is None else describe_answers(answer[None])[0]
                probed.update(child.modules())
    samples = dict(_samples(tower, probed))
    read = {name: sample for name, sample in samples.items() if sample is not None}
    texts = describe_answers(torch.stack([*read.values()])) if read else []
    others = dict.fromkeys(samples, "") | dict(zip(read, texts, strict=True))
    unread = [name for name, numbers in found.items() if not numbers]
    if unread:
        _warn_once(type(model).__name__, unread[0], len(unread))
    # Set to "medium", torch rounds float32 to bfloat16 before it multiplies.
    is_rounded = dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
    kept = torch.bfloat16 if is_rounded else dtype
    return {"dtype": str(kept).removeprefix("torch."), "projections": found, "others": others}


def _samples(tower: nn.Module, probed: set[nn.Module]) -> Iterator[tuple[str, Tensor | None]]:
    """Yield a sample of each weight of all modules but those that were run, by its name in the state of the tower."""
    kept = tower.state_dict(keep_vars=True).keys()
    for path, module in tower.named_modules():
        if module in probed:
            continue
        with align_module_device(module):  # Brings offloaded weights back.
            for name, weight in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                full = f"{path}.{name}" if path else name
                if full in kept and weight.is_floating_point():
                    yield full, sampled(weight)


def _projections(module: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the named projections, in whatever they are wrapped, and all other linear maps beside them."""
    for name, child in module.named_children():
        if name in names or isinstance(getattr(child, "in_features", None), int):
            yield name, child


def _answer(projection: nn.Module, dtype: torch.dtype) -> Tensor | None:
    """Run a projection on the probes; return None if it cannot be run alone."""
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
