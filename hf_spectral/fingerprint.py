"""A fingerprint of a backbone's weights: its numbers, and whether two of them agree up to rounding."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_spectral.errors import SpectralError

#: Where a description keeps the fingerprint: of the attention layers' projections, and of all other weights.
WEIGHTS = "attention_weights"

# Tolerances, as shares of the norm of a projection's output. Rounding weights and outputs to bfloat16 changes it by 0.2
# to 0.4 percent, float32 on another device by less than 0.1 percent, quantization to 8 bits by about 1 percent.
_TOLERANCE = 0.001
_TOLERANCE_OF_HALF = 0.006
_MAX_LISTED = 3
_NUM_PROBES = 4
_NUM_SAMPLED = 256
# Half precision rounds smaller numbers, such as those of a layer scale that starts at 1e-6, by more than the tolerance.
_LEAST_NORM = 1e-3
_logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=64)
def probes(width: int) -> Tensor:
    """Return the fixed vectors that a projection is run on: random signs, which every precision holds exactly.

    Args:
        width: Channels that the projection takes.

    Returns:
        Float32, `(4, width)`, on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(width)
    shape = (_NUM_PROBES, width)
    return 2 * torch.randint(0, 2, shape, generator=generator, dtype=torch.float32, device="cpu") - 1


def describe_answers(answers: Tensor) -> list[str]:
    """Describe outputs of projections for the probes, or samples of other weights.

    Of each answer Y and fixed random signs Z, the norm of Y and Y Z / 2 are kept: what changes Y by a share of its norm
    changes Y Z / 2 by about the same share.

    Args:
        answers: `(count, 4, channels)`, of any precision and device.

    Returns:
        17 numbers of five digits, as text, for each.
    """
    # In float64, which neither a caller's autocast nor its precision of products changes.
    answers = answers.cpu().double()
    mixed = answers @ probes(answers.shape[-1]).double().T / _NUM_PROBES**0.5
    rows = torch.cat([answers.flatten(1).norm(dim=1, keepdim=True), mixed.flatten(1)], dim=1).tolist()
    return [" ".join(f"{number:.5g}" for number in row) for row in rows]


def sampled(weight: Tensor) -> Tensor | None:
    """Return a few numbers of a weight, evenly spread over it, to be described like an answer.

    Args:
        weight: Of any shape, precision and device.

    Returns:
        Float64, `(4, 64)`, with zeros behind where there are not as many; None if it cannot be read, as on the device
        "meta" or in shards.
    """
    if type(weight) not in (Tensor, torch.nn.Parameter) or weight.is_meta:
        return None
    step = weight.numel() // _NUM_SAMPLED | 1  # An odd step meets all columns of a matrix.
    numbers = weight.detach().flatten()[::step][:_NUM_SAMPLED].to("cpu", torch.float64)
    return torch.nn.functional.pad(numbers, (0, _NUM_SAMPLED - len(numbers))).unflatten(0, (_NUM_PROBES, -1))


def require_same_weights(
    argument: str,
    stored: Mapping[str, Any] | None,
    found: Mapping[str, Any] | None,
    layers: Iterable[tuple[str, int]] = (),
) -> None:
    """Check that weights agree: those of the attention layers first, then all others.

    Weights that one side could not read, or that the fingerprint of an earlier version lacks, are not compared.

    Args:
        argument: Name to show in the message.
        stored: Fingerprint that is expected, or None.
        found: Fingerprint of the backbone at hand, or None. It may differ by 0.1 percent, or by 0.6 percent if either
            side keeps its weights in another precision than float32.
        layers: Name and index of layers, for the message.

    Raises:
        SpectralError: If a weight differs; three of them are named.
    """
    if stored is None or found is None:
        if found is not None:
            _warn_once()
        return
    for part, name in (("projections", "attention weights"), ("others", "weights")):
        if changed := _changed(part, stored, found, dict(layers)):
            more = f" and {len(changed) - _MAX_LISTED} more" if len(changed) > _MAX_LISTED else ""
            raise SpectralError(
                argument,
                expected=f"the backbone it was fitted on, with the same {name}",
                got=f"{name} that differ: " + ", ".join(changed[:_MAX_LISTED]) + more,
                fix="Load that backbone, without adapters or quantization it did not have, or fit a basis on this one",
            )


def is_fingerprint(value: Any) -> bool:
    """Return whether a JSON value has the form of a fingerprint.

    Args:
        value: Any JSON value.

    Returns:
        True if it has.
    """
    return isinstance(value, dict) and all(
        isinstance(texts, dict) and all(isinstance(text, str) and _numbers(text) is not None for text in texts.values())
        for texts in (value.get("projections"), value.get("others", {}))
    )


def _changed(part: str, stored: Mapping[str, Any], found: Mapping[str, Any], indices: Mapping[str, int]) -> list[str]:
    """Return which weights differ, and by how much; those that either side could not read are passed over."""
    is_exact = stored.get("dtype") == found.get("dtype") == "float32"
    tolerance = _TOLERANCE if is_exact else _TOLERANCE_OF_HALF
    changed = []
    for name, text in stored.get(part, {}).items() if part in found else ():
        other = found[part].get(name)
        if not text or other == "":
            continue
        mine, theirs = _numbers(text) or [], _numbers(other or "") or []
        index = indices.get(name.rpartition(".")[0])
        place = f"{name!r}" if index is None else f"layer {index} ({name!r})"
        if len(mine) != len(theirs):
            changed.append(f"{place} is {'not there' if other is None else 'of another form'}")
            continue
        share = math.dist(mine[1:], theirs[1:]) / max(mine[0], _LEAST_NORM)
        if not share <= tolerance:  # NaN is no agreement.
            changed.append(f"{place} by {share:.2g} of its norm")
    return changed


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split()]
    except ValueError:
        return None


@functools.cache
def _warn_once() -> None:
    _logger.warning(
        "This basis was made by an earlier version and holds no fingerprint of the attention weights: that the "
        "backbone has the same weights is not checked. Fit it again to have it checked."
    )
