"""The weights of layers in a joint problem: the forms that a caller may give, their checks, the resulting numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np

from hf_spectral.checks import is_int, is_number
from hf_spectral.errors import SpectralError

#: `"auto"`, `"equal"`, pairs of a layer index with its weight, ascending, or one weight per layer that takes part.
Weighting: TypeAlias = Literal["auto", "equal"] | tuple[tuple[int, float], ...] | tuple[float, ...]

# Largest ratio of two weights: a smaller weight would be lost in float32.
_MOST_RATIO = 1e6


def as_weighting(given: Any) -> Weighting:
    """Bring what a caller said about layer weights to one form.

    Args:
        given: `"auto"`, `"equal"`, one number per layer that takes part, numbers by layer index, or what this function
            returned before (also as JSON gave it back).

    Returns:
        A name, pairs of index and weight, or the numbers.

    Raises:
        SpectralError: If it is none of these, an index is no integer from 0, a weight is negative or not finite, none
            is above 0, or two of them differ by a factor of more than a million.
    """
    if isinstance(given, str) and given in ("auto", "equal"):
        return "auto" if given == "auto" else "equal"
    values = list(given) if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str | bytes) else []
    pairs: list[Any] = []
    if isinstance(given, Mapping) or (values and all(isinstance(one, Sequence) and len(one) == 2 for one in values)):
        pairs = list(given.items()) if isinstance(given, Mapping) else values
        values = [weight for _, weight in pairs]
    are_indices = all(is_int(index) and index >= 0 for index, _ in pairs)
    are_indices = are_indices and len({index for index, _ in pairs}) == len(pairs)
    if not values or not are_indices or not all(is_number(weight) and weight >= 0 for weight in values):
        raise SpectralError(
            "layer_weights",
            expected="'auto', 'equal', or finite weights of at least 0, one per layer or by layer index",
            got=repr(given),
            fix="Give e.g. layer_weights={10: 1.0, 11: 2.0}",
        )
    above = [float(weight) for weight in values if weight > 0]
    if not above:
        raise SpectralError("layer_weights", expected="a weight above 0", got=given, fix="Leave it out")
    if max(above) / _MOST_RATIO > min(above):
        raise SpectralError(
            "layer_weights",
            expected="weights that differ by a factor of at most a million",
            got=f"{min(above):g} and {max(above):g}",
            fix="Give 0 to a layer that is to take no part",
        )
    if pairs:
        return tuple(sorted((int(index), float(weight)) for index, weight in pairs))
    return tuple(map(float, values))


def relative_weights(weighting: Weighting, indices: Sequence[int]) -> list[float]:
    """Return the weights of some layers relative to each other, whatever the other layers are.

    Args:
        weighting: As `as_weighting` returns it.
        indices: The first layers that take part, each once, ascending: numbers without indices belong to them in turn.

    Returns:
        One number per layer, 0 or from 1e-6 / 2 to 1; all 1 where no numbers were given.
    """
    if isinstance(weighting, str):
        return [1.0] * len(indices)
    numbers: Any = weighting
    given: dict[int, float] = dict(numbers if is_by_index(weighting) else zip(indices, numbers, strict=False))
    largest = max(given.values() if is_by_index(weighting) else numbers)
    # Scaling by a power of two changes no digit, and keeps the sum far from the ends of the range of floats.
    _, exponent = math.frexp(largest)
    return [math.ldexp(given.get(index, 0.0), -exponent) for index in indices]


def weight_list(indices: Sequence[int], weighting: Weighting) -> list[float]:
    """Return the weight of every record of a problem, together 1.

    Args:
        indices: Layer of each record that takes part; records of one layer, as of several timesteps, share its weight.
        weighting: Numbers without indices belong to the layers in ascending order; of those by index, a layer left out
            has weight 0. `"auto"` weighs all alike here, where there is no evidence.

    Returns:
        Numbers of at least 0, one per record.

    Raises:
        SpectralError: If there are more or fewer numbers than layers, an index is not among the layers, or none of them
            has a weight.
    """
    layers = sorted(set(indices))
    unknown: list[int] = []
    if is_by_index(weighting):
        unknown = sorted(dict(weighting).keys() - layers)
    elif not isinstance(weighting, str) and len(weighting) != len(layers):
        raise SpectralError(
            "layer_weights",
            expected=f"{len(layers)} numbers, one for each layer that takes part ({', '.join(map(str, layers))})",
            got=f"{len(weighting)} numbers",
            fix="Give as many, 0 for a layer that is to take no part, or give numbers by layer index",
        )
    relative = dict(zip(layers, relative_weights(weighting, layers), strict=True))
    total = sum(relative[index] for index in indices)
    if unknown or not total:
        raise SpectralError(
            "layer_weights",
            expected=f"indices among {layers}, with a weight above 0",
            got=unknown or "none",
            fix="Weigh only layers that take part",
        )
    return [relative[index] / total for index in indices]


def of_known(weighting: Weighting, layers: Iterable[int]) -> Weighting:
    """Return weights by index, for layers that all have one.

    Args:
        weighting: As `as_weighting` returns it.
        layers: Indices of the layers whose weight is above 0.

    Returns:
        A name, or pairs of index and weight, those of weight 0 left out.
    """
    if isinstance(weighting, str):
        return weighting
    if is_by_index(weighting):
        return tuple(pair for pair in weighting if pair[1] > 0)
    numbers: Any = weighting
    return tuple(zip(sorted(set(layers)), [number for number in numbers if number > 0], strict=True))


def is_by_index(weighting: Weighting) -> TypeGuard[tuple[tuple[int, float], ...]]:
    """Return whether weights are given by layer index.

    Args:
        weighting: As `as_weighting` returns it.

    Returns:
        False for a name, and for numbers that belong to the layers in turn.
    """
    return isinstance(weighting[0], tuple)
