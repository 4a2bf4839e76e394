"""Which layers are worth their weight, without labels: how smooth a layer's own eigenvectors are inside images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.basis.gram import BlockGram
from hf_spectral.basis.layers import UnitTokens
from hf_spectral.basis.pencil import Pencil, leading_eigenpairs

# Every eighth token asks for its neighbors, among all of its image: enough for a mean over a dataset.
_STRIDE = 8
# Tokens that ask at once: bounds the memory of a large image.
_ROWS = 1024
# Eigenvectors of a layer that are looked at, the trivial one not among them: fixed, so that weights do not depend on
# the number asked for.
_NUM_EIGENVECTORS = 63
# Layers this close to the mean smoothness are not told apart.
_SLACK = 0.01
_LEAST = 1e-6


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
            left, right = parts[0][image], parts[-1][image]  # Values twice, or queries and keys.
            cosines = left[asking] @ right.T
            if len(parts) > 1:
                cosines = (cosines + right[asking] @ left.T) / 2
            cosines.scatter_(1, asking[:, None], -torch.inf)
            values, neighbors = cosines.topk(min(num_neighbors, num_nodes - 1), dim=1)
            values = torch.where(values > threshold, values, torch.zeros_like(values))
            shares = values / values.sum(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
            walk.scatter_add_(1, neighbors, shares / len(tokens))
        for total, factor in zip(totals, factors, strict=True):
            own = factor[asking]
            total[0] += own.T @ own
            total[1] += own.T @ (walk @ factor)


def smoothness(evidence: Float[Tensor, "2 rank rank"], signs: Float[Tensor, " rank"]) -> float:
    """Return the mean smoothness of a layer's leading dataset-level eigenvectors, weighted by 1 - lambda.

    Args:
        evidence: Sums of `add_evidence` over the dataset.
        signs: Diagonal of J.

    Returns:
        About 0 for eigenvectors that change from token to token at random, 1 for those constant inside images.
    """
    norms, neighbors = evidence
    gram = BlockGram([len(signs)], [norms.clone()]).symmetrize_()
    count = min(_NUM_EIGENVECTORS + 1, len(signs))
    pairs = leading_eigenpairs(Pencil(gram, torch.ones_like(signs), signs), count, seed=0)
    values, vectors = pairs.values[1:], pairs.vectors[:, 1:]
    quotients = (vectors * (neighbors @ vectors)).sum(0)
    return float((values * quotients).sum() / values.sum()) if len(values) else 0.0


def automatic_weights(evidence: Sequence[Float[Tensor, "2 _rank _rank"]], signs: Sequence[Tensor]) -> list[float]:
    """Weigh layers by their smoothness; those below the mean take no part.

    What tells objects apart changes little from a token to those that look like it in the same image; texture changes,
    and noise changes everywhere. Figures: `tests/benchmarks/layer_weights.py`.

    Args:
        evidence: Of each layer.
        signs: Diagonal of J of each layer.

    Returns:
        Numbers of at least 0, together 1.
    """
    found = [max(smoothness(one, sign), _LEAST) for one, sign in zip(evidence, signs, strict=True)]
    least = sum(found) / len(found) - _SLACK
    kept = [one if one >= least else 0.0 for one in found]
    return [one / sum(kept) for one in kept]
