"""The weights of the layers of a dataset, found without labels: how smooth each layer is, and how far layers agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.basis.eigen import Eigenpairs, Pencil, leading_eigenpairs
from hf_spectral.basis.gram import BlockGram
from hf_spectral.basis.sums import Totals
from hf_spectral.errors import SpectralError
from hf_spectral.layer_weights import Weighting, weight_list

# Tolerances below the mean smoothness, and as a share below the mean agreement, within which a layer still qualifies.
_SLACK = 0.01
_AGREEMENT_SLACK = 0.005
# Number of eigenvectors of each layer, the trivial one not counted: fixed, so that weights do not depend on the number
# asked for.
_NUM_EIGENVECTORS = 63


def final_weights(totals: Totals, initial: Weighting, chosen: Weighting) -> list[float]:
    """Return the weights to solve with, once both passes are complete.

    Args:
        totals: Both passes.
        initial: Given at the start, with indices: they entered the mass of images whose layers differ in resolution.
        chosen: Asked for now.

    Returns:
        One weight per layer, together 1.

    Raises:
        SpectralError: If the second pass is not complete, cannot be weighed anew, or holds no evidence for `"auto"`.
    """
    if not totals.is_complete:
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


def own_eigenpairs(gram: BlockGram, position: int, signs: Float[Tensor, " rank"]) -> Eigenpairs:
    """Solve the problem of one layer alone.

    Args:
        gram: Gram matrix of all layers.
        position: Position of the layer.
        signs: Diagonal of its J.

    Returns:
        At most 63 pairs, the trivial one not among them.
    """
    count = min(_NUM_EIGENVECTORS + 1, len(signs))
    alone = BlockGram([len(signs)], [gram.between(position, position).clone()]).symmetrize_()
    pairs = leading_eigenpairs(Pencil(alone, torch.ones_like(signs), signs), count, seed=0)
    return Eigenpairs(pairs.values[1:], pairs.vectors[:, 1:], pairs.residuals[1:])


def mean_agreement(
    gram: BlockGram, own: Sequence[Eigenpairs], positions: Sequence[int]
) -> Float[np.ndarray, " layers"]:
    """Return how far each layer's eigenvectors agree with those of the others.

    Of two layers: the mean squared cosine of the principal angles between the spans of their eigenvectors over all
    tokens of the dataset, for which the Gram matrix is enough: x = G_l u and y = G_m v have x^T y = u^T C_lm v.

    Args:
        gram: Gram matrix of all layers.
        own: Eigenvectors of each of the layers compared.
        positions: The layers compared, ascending.

    Returns:
        Numbers from 0 to 1, the mean over the other layers; 1 for a layer without others.
    """
    if len(own) == 1:
        return np.ones(1)
    table = np.zeros((len(own), len(own)))
    for i, j in itertools.combinations(range(len(own)), 2):
        left, right = own[i].vectors, own[j].vectors
        cosines = left.T @ gram.between(positions[i], positions[j]) @ right
        smaller = max(min(left.shape[1], right.shape[1]), 1)
        table[i, j] = table[j, i] = float(cosines.square().sum()) / smaller
    return table.sum(1) / (len(own) - 1)


def smoothness(evidence: Float[Tensor, "2 rank rank"], own: Eigenpairs) -> float:
    """Return the mean smoothness of a layer's leading dataset-level eigenvectors, weighted by 1 - lambda.

    Args:
        evidence: Sums of `add_evidence` over the dataset.
        own: The layer's eigenvectors, the trivial one not among them.

    Returns:
        About 0 for eigenvectors that change from token to token at random, 1 for those constant inside images.
    """
    if not len(own.values):
        return 0.0
    squares, neighbors = ((own.vectors * (part @ own.vectors)).sum(0) for part in evidence)
    quotients = neighbors / squares.clamp_min(torch.finfo(squares.dtype).tiny)
    return float((own.values * quotients).sum() / own.values.sum())
