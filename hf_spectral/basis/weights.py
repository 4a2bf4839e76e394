"""The weights that a dataset-level problem is solved with."""

from __future__ import annotations

from hf_spectral.basis.agreement import mean_agreement, own_eigenpairs, smoothness
from hf_spectral.basis.sums import Totals
from hf_spectral.errors import SpectralError
from hf_spectral.weighting import Weighting, weight_list

# Layers this close to the mean smoothness, and by this share to the mean agreement, count as the mean.
_SLACK = 0.01
_AGREEMENT_SLACK = 0.005


def final_weights(totals: Totals, initial: Weighting, chosen: Weighting) -> list[float]:
    """Return the weights to solve with, once both passes are complete.

    Args:
        totals: Both passes.
        initial: Given at the start, with indices: they entered the mass of images whose layers differ in resolution.
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
    indices = [layer.index for layer in totals.layers]
    weights = weight_list(indices, chosen)
    if totals.num_mixed and weights != weight_list(indices, initial):
        raise SpectralError(
            "layer_weights",
            expected="those given at the start, for layers of different resolution",
            got="others",
            fix="Give SpectralConfig(layer_weights=...) and make the second pass again",
        )
    if chosen != "auto":
        return weights
    if not totals.has_evidence:
        raise SpectralError(
            "layer_weights",
            expected="'auto' at the start, so that the second pass collects evidence",
            got="'auto' now only",
            fix="Give SpectralConfig(layer_weights='auto') and make the second pass again",
        )
    if totals.num_mixed:
        return weights
    return _automatic_weights(totals)


def _automatic_weights(totals: Totals) -> list[float]:
    """Take the smooth layers, and weigh each by how far its agreement with the others is above the mean.

    What tells objects apart changes little from a token to those that look like it in the same image; texture changes,
    and noise changes everywhere: layers less smooth than the mean take no part. The last layers of a network are smooth
    too, yet turn to what its training asked of them. Without labels the layers can only be asked about each other: of
    judges that err independently, those who agree most with the rest are best (Parisi et al. 2014, Ranking and
    combining multiple predictors without labeled data, PNAS 111). A weight that begins at zero at the mean makes no
    jump where a layer passes it. Figures: `tests/benchmarks/layer_weights.py`.

    Returns:
        Numbers of at least 0, together 1.
    """
    gram = totals.start_gram()
    own = [own_eigenpairs(gram, position, signs) for position, signs in enumerate(totals.signs)]
    found = [smoothness(one, pairs) for one, pairs in zip(totals.evidence, own, strict=True)]
    smooth = [position for position, one in enumerate(found) if one >= sum(found) / len(found) - _SLACK]
    agreement = mean_agreement(gram, [own[position] for position in smooth], smooth)
    above = (agreement - (1 - _AGREEMENT_SLACK) * agreement.mean()).clip(min=0)
    if not above.any():  # No two layers have anything in common.
        above += 1
    weights = dict(zip(smooth, (above / above.sum()).tolist(), strict=True))
    return [weights.get(position, 0.0) for position in range(len(own))]
