"""What the layers of a dataset have in common: their own eigenvectors, and how far those of two layers agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.basis.eigen import Eigenpairs, Pencil, leading_eigenpairs
from hf_spectral.basis.gram import BlockGram

# Eigenvectors of a layer that are looked at, the trivial one not among them: fixed, so that weights do not depend on
# the number asked for.
_NUM_EIGENVECTORS = 63


def own_eigenpairs(gram: BlockGram, position: int, signs: Float[Tensor, " rank"]) -> Eigenpairs:
    """Solve the problem of one layer alone.

    Args:
        gram: Of all layers.
        position: Of the layer.
        signs: Diagonal of its J.

    Returns:
        At most 63 pairs, the trivial one not among them.
    """
    count = min(_NUM_EIGENVECTORS + 1, len(signs))
    alone = BlockGram([len(signs)], [gram.between(position, position).clone()]).symmetrize_()
    pairs = leading_eigenpairs(Pencil(alone, torch.ones_like(signs), signs), count, seed=0)
    return Eigenpairs(pairs.values[1:], pairs.vectors[:, 1:], pairs.residuals[1:], pairs.steps)


def mean_agreement(
    gram: BlockGram, own: Sequence[Eigenpairs], positions: Sequence[int]
) -> Float[np.ndarray, " layers"]:
    """Return how far each layer's eigenvectors agree with those of the others.

    Of two layers: the mean squared cosine of the principal angles between the spans of their eigenvectors over all
    tokens of the dataset, for which the Gram matrix is enough: x = G_l u and y = G_m v have x^T y = u^T C_lm v.

    Args:
        gram: Of all layers.
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
