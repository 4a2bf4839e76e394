"""The weights that a dataset-level problem is solved with."""

from __future__ import annotations

from hf_spectral.basis.smoothness import automatic_weights
from hf_spectral.basis.totals import Totals
from hf_spectral.errors import SpectralError
from hf_spectral.weighting import Weighting, weight_list


def start_weights(totals: Totals, weighting: Weighting) -> list[float]:
    """Return the weights that enter the mass of images whose layers differ in resolution.

    Args:
        totals: Its layers count.
        weighting: Given at the start; `"auto"` weighs all alike.

    Returns:
        One weight a layer, above 0, together 1.

    Raises:
        SpectralError: If a layer has no weight: its Gram matrix would be added up in vain.
    """
    plain = weight_list([layer.index for layer in totals.layers], weighting)
    if min(plain) == 0:
        raise SpectralError(
            "layer_weights",
            expected="a weight above 0 for every layer that takes part",
            got=f"none for {totals.layers[plain.index(0)].name}",
            fix="Choose the layers by SpectralConfig(layers=...)",
        )
    return plain


def final_weights(totals: Totals, initial: Weighting, chosen: Weighting) -> list[float]:
    """Return the weights to solve with, once both passes are complete.

    Args:
        totals: Both passes.
        initial: Given at the start: they entered the mass of images whose layers differ in resolution.
        chosen: Asked for now.

    Returns:
        One weight a layer, together 1.

    Raises:
        SpectralError: If the second pass is not complete, cannot be weighed anew, or holds no evidence for `"auto"`.
    """
    if totals.gram is None or totals.num_summed != totals.num_in_gram:
        raise SpectralError(
            "dataset",
            expected=f"the second pass over the {totals.num_summed} images of the first",
            got=f"{totals.num_in_gram} images",
            fix="Call add_gram with every image that add_sums has taken",
        )
    if totals.num_mixed and chosen != initial:
        raise SpectralError(
            "layer_weights",
            expected="those given at the start, for layers of different resolution",
            got="others",
            fix="Give SpectralConfig(layer_weights=...) and make the second pass again",
        )
    if chosen != "auto":
        return weight_list([layer.index for layer in totals.layers], chosen)
    if not totals.has_evidence:
        raise SpectralError(
            "layer_weights",
            expected="'auto' at the start, so that the second pass collects evidence",
            got="'auto' now only",
            fix="Give SpectralConfig(layer_weights='auto') and make the second pass again",
        )
    if totals.num_mixed:
        return start_weights(totals, "equal")
    return automatic_weights(totals.evidence, totals.signs)
