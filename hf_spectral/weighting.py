"""How much each layer counts in a joint problem: what a caller may say, checked, and what it means for some layers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np

from hf_spectral.errors import SpectralError

#: `"auto"`, `"equal"`, or pairs of a layer index with its weight, ascending.
Weighting: TypeAlias = Literal["auto", "equal"] | tuple[tuple[int, float], ...]


def is_int(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer, be it Python's or numpy's; a truth value is none.

    Args:
        value: Anything.

    Returns:
        True or False.
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite real number, be it Python's or numpy's; a truth value is none.

    Args:
        value: Anything.

    Returns:
        True or False.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer beyond the range of floats.
        return False


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
    elif isinstance(given, Sequence | np.ndarray) and not isinstance(given, str | bytes):
        is_paired = len(given) > 0 and all(isinstance(one, Sequence) and len(one) == 2 for one in given)
        pairs = [tuple(one) for one in given] if is_paired else list(enumerate(given))
    else:
        pairs = [(given, None)]  # Refused below.
    for index, weight in pairs:
        is_fit = is_int(index) and index >= 0 and is_number(weight) and weight >= 0
        if not is_fit or sum(index == one for one, _ in pairs) > 1:
            raise SpectralError(
                "layer_weights",
                expected="'auto', 'equal', or finite weights of at least 0, one a layer or by layer index",
                got=repr(given),
                fix="Give e.g. layer_weights={10: 1.0, 11: 2.0}",
            )
    if not any(weight for _, weight in pairs):
        raise SpectralError("layer_weights", expected="a weight above 0", got=given, fix="Leave it out")
    return tuple(sorted((int(index), float(weight)) for index, weight in pairs))


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
