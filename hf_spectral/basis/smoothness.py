"""How smooth a layer's own dataset-level eigenvectors are inside images: what tells without labels what it is worth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.basis.layers import UnitTokens
from hf_spectral.basis.pencil import Eigenpairs
from hf_spectral.operators import nearest_neighbors

# Every eighth token asks for its neighbors, among all of its image: enough for a mean over a dataset.
_STRIDE = 8
# Tokens that ask at once: bounds the memory of a large image.
_ROWS = 1024


def add_evidence(
    totals: Sequence[Float[Tensor, "2 _rank _rank"]],
    tokens: Sequence[UnitTokens],
    factors: Sequence[Float[Tensor, "nodes _rank"]],
    image: int,
    num_neighbors: int,
    threshold: float,
) -> None:
    """Add what one image says about the smoothness of any combinations of each layer's columns: sums over tokens.

    With P the mean over a token's nearest neighbors, averaged over all layers, and x = G v, both x^T x and x^T P x are
    quadratic forms of v: G^T G and G^T P G, added up over a dataset, give the smoothness x^T P x / x^T x of any v
    later, and processes and shards combine by addition. Neighbors by all layers, since a layer of pure noise is smooth
    among the neighbors that the same noise makes.

    Args:
        totals: Both matrices of each layer, changed in place.
        tokens: Unit vectors of each layer, all on one grid.
        factors: G of each layer of the same image.
        image: Position in the batch.
        num_neighbors: Neighbors that a token asks for.
        threshold: Cosines at or below it are no neighbors.
    """
    num_nodes, device = factors[0].shape[0], factors[0].device
    for asking in torch.arange(0, num_nodes, _STRIDE, device=device).split(_ROWS):
        walk = torch.zeros(len(asking), num_nodes, device=device)
        for parts in tokens:
            left, right = parts[0][image], (parts[1][image] if len(parts) > 1 else None)
            rows, columns, cosines = nearest_neighbors(left, right, num_neighbors, threshold, asking=asking)
            sums = torch.zeros(len(asking), device=device).index_add_(0, rows, cosines)
            walk.index_put_((rows, columns), cosines / (sums[rows] * len(tokens)), accumulate=True)
        for total, factor in zip(totals, factors, strict=True):
            own = factor[asking]
            total[0] += own.T @ own
            total[1] += own.T @ (walk @ factor)


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
