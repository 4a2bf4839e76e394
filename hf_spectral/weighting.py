"""How much each layer counts in a joint problem: what a caller may say, checked, and what it means for some layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from hf_spectral.errors import SpectralError

#: `"auto"`, `"equal"`, or pairs of a layer index with its weight, ascending.
Weighting: TypeAlias = Literal["auto", "equal"] | tuple[tuple[int, float], ...]


def as_weighting(given: Any) -> Weighting:
    """Bring what a caller said about layer weights to one form.

    Args:
        given: `"auto"`, `"equal"`, one number a layer from layer 0 on, numbers by layer index, or what this function
            returned before (also as JSON gave it back).

    Returns:
        A name, or pairs of index and weight.

    Raises:
        SpectralError: If it is none of these, an index is no integer from 0, a weight is negative or not finite, or
            none is above 0.
    """
    if isinstance(given, str) and given in ("auto", "equal"):
        return "auto" if given == "auto" else "equal"
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
        is_paired = bool(given) and all(isinstance(one, Sequence) and len(one) == 2 for one in given)
        pairs = [tuple(one) for one in given] if is_paired else list(enumerate(given))
    else:
        pairs = [(given, None)]  # Refused below.
    for index, weight in pairs:
        is_index = isinstance(index, int) and not isinstance(index, bool) and index >= 0
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_index or not is_number or not 0 <= weight < math.inf or sum(index == one for one, _ in pairs) > 1:
            raise SpectralError(
                "layer_weights",
                expected="'auto', 'equal', or finite weights of at least 0, one a layer or by layer index",
                got=repr(given),
                fix="Give e.g. layer_weights={10: 1.0, 11: 2.0}",
            )
    if not any(weight for _, weight in pairs):
        raise SpectralError("layer_weights", expected="a weight above 0", got=given, fix="Leave it out")
    return tuple(sorted((index, float(weight)) for index, weight in pairs))


def weight_list(indices: Sequence[int], weighting: Weighting) -> list[float]:
    """Return one weight a layer, together 1.

    Args:
        indices: Of the layers that take part.
        weighting: A layer left out has weight 0. `"auto"` weighs all alike here, where there is no evidence.

    Returns:
        Numbers of at least 0.

    Raises:
        SpectralError: If an index is not among the layers, or none of them has a weight.
    """
    if isinstance(weighting, str):
        return [1 / len(indices)] * len(indices)
    given = dict(weighting)
    unknown = sorted(set(given) - set(indices))
    plain = [given.get(index, 0.0) for index in indices]
    if unknown or not any(plain):
        raise SpectralError(
            "layer_weights",
            expected=f"indices among {sorted(set(indices))}, with a weight above 0",
            got=unknown or "none",
            fix="Weigh only layers that take part",
        )
    return [weight / sum(plain) for weight in plain]
