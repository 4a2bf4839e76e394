"""The weights of the layers in the joint problem."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hf_spectral.basis.layers import BasisLayer
from hf_spectral.basis.totals import Totals
from hf_spectral.errors import SpectralError


def require_weights(weights: Mapping[int, float | int]) -> dict[int, float]:
    """Refuse layer weights that are no weights.

    Args:
        weights: A number by layer index.

    Returns:
        A copy.

    Raises:
        SpectralError: If an index is no integer from 0, a weight is negative or not finite, or all are 0.
    """
    for index, weight in weights.items():
        is_index = isinstance(index, int) and not isinstance(index, bool) and index >= 0
        if not is_index or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise SpectralError(
                "layer_weights",
                expected="finite weights of at least 0 by layer index",
                got=f"{index!r}: {weight!r}",
                fix="Give e.g. layer_weights={10: 1.0, 11: 2.0}",
            )
    if not any(weights.values()):
        raise SpectralError("layer_weights", expected="a weight above 0", got=dict(weights), fix="Leave it out")
    return {index: float(weight) for index, weight in weights.items()}


def weight_list(layers: Sequence[BasisLayer], weights: Mapping[int, float | int] | None) -> list[float]:
    """Return one weight a layer, together 1.

    Args:
        layers: The layers.
        weights: By layer index; a layer left out has weight 0. None weighs all alike.

    Returns:
        Numbers of at least 0.

    Raises:
        SpectralError: If an index is not among the layers.
    """
    if weights is None:
        return [1 / len(layers)] * len(layers)
    unknown = sorted(set(weights) - {layer.index for layer in layers})
    if unknown:
        raise SpectralError(
            "layer_weights",
            expected=f"indices among {sorted({layer.index for layer in layers})}",
            got=unknown,
            fix="Weigh the layers of the basis only",
        )
    plain = [weights.get(layer.index, 0.0) for layer in layers]
    return [weight / sum(plain) for weight in plain]


def require_weight_of_each(layers: Sequence[BasisLayer], weights: Mapping[int, float] | None) -> None:
    """Refuse weights that leave a layer out whose Gram matrix would be added up in vain.

    Args:
        layers: The layers that take part.
        weights: By layer index, or None.

    Raises:
        SpectralError: If a layer has no weight.
    """
    plain = weight_list(layers, weights)
    if min(plain) == 0:
        raise SpectralError(
            "layer_weights",
            expected="a weight above 0 for every layer that takes part",
            got=f"none for {layers[plain.index(0)].name}",
            fix="Choose the layers by SpectralConfig(layers=...)",
        )


def final_weights(
    totals: Totals, initial: Mapping[int, float] | None, given: Mapping[int, float | int] | None
) -> list[float]:
    """Return the weights to solve with, once both passes are complete.

    Args:
        totals: Both passes.
        initial: Weights given at the start: they entered the mass of images whose layers differ in resolution.
        given: Weights asked for now, or None.

    Returns:
        One weight a layer, together 1.

    Raises:
        SpectralError: If the second pass is not complete, or cannot be weighed anew.
    """
    if totals.gram is None or totals.num_summed != totals.num_in_gram:
        raise SpectralError(
            "dataset",
            expected=f"the second pass over the {totals.num_summed} images of the first",
            got=f"{totals.num_in_gram} images",
            fix="Call add_gram with every image that add_sums has taken",
        )
    chosen = initial if given is None else require_weights(given)
    if totals.num_mixed and chosen != initial:
        raise SpectralError(
            "layer_weights",
            expected="those given at the start, for layers of different resolution",
            got="others",
            fix="Give BasisAccumulator(layer_weights=...) and make the second pass again",
        )
    return weight_list(totals.layers, chosen)
