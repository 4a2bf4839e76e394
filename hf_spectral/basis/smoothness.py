"""Which layers are worth their weight, without labels: how smooth a layer's own eigenvectors are inside images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.basis.gram import BlockGram
from hf_spectral.basis.pencil import Pencil, leading_eigenpairs

# Every fourth token asks for its neighbors, among all of its image: enough for a mean over a dataset.
_STRIDE = 4
# Tokens that ask at once: bounds the memory of a large image.
_ROWS = 1024
# Eigenvectors of a layer that are looked at, the trivial one not among them: fixed, so that weights do not depend on
# the number asked for.
_NUM_EIGENVECTORS = 63
# Layers this close to the mean smoothness are not told apart.
_SLACK = 0.01
_LEAST = 1e-6


def evidence_of(
    left: Float[Tensor, "nodes kept"],
    right: Float[Tensor, "nodes kept"] | None,
    normalized: Float[Tensor, "nodes rank"],
    num_neighbors: int,
    threshold: float,
) -> Float[Tensor, "2 rank rank"]:
    """Return what one image says about the smoothness of any combinations of a layer's columns: sums over its tokens.

    With P the mean over a token's nearest neighbors, weighted by their cosines, and x = G v, both x^T x and x^T P x are
    quadratic forms of v, so that G^T G and G^T P G, added up over a dataset, give the smoothness x^T P x / x^T x of any
    v later, and processes and shards combine by addition.

    Args:
        left: Unit vectors of one image and layer.
        right: The keys, where `left` are queries; None for values.
        normalized: G of the same tokens.
        num_neighbors: Neighbors that a token asks for.
        threshold: Cosines at or below it are no neighbors.

    Returns:
        Both matrices, over every fourth token.
    """
    num_nodes, rank = normalized.shape
    total = torch.zeros(2, rank, rank, dtype=torch.float64, device=left.device)
    for asking in torch.arange(0, num_nodes, _STRIDE, device=left.device).split(_ROWS):
        cosines = left[asking] @ (left if right is None else right).T
        if right is not None:
            cosines = (cosines + right[asking] @ left.T) / 2
        cosines.scatter_(1, asking[:, None], -torch.inf)
        values, neighbors = cosines.topk(min(num_neighbors, num_nodes - 1), dim=1)
        values = torch.where(values > threshold, values, torch.zeros_like(values))
        values = values / values.sum(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
        means = torch.zeros_like(cosines).scatter_(1, neighbors, values) @ normalized
        own = normalized[asking]
        total[0] += own.T @ own
        total[1] += own.T @ means
    return total


def smoothness(evidence: Float[Tensor, "2 rank rank"], signs: Float[Tensor, " rank"]) -> float:
    """Return the mean smoothness of a layer's leading dataset-level eigenvectors, the trivial one left out.

    Args:
        evidence: Sums of `evidence_of` over the dataset.
        signs: Diagonal of J.

    Returns:
        About 0 for eigenvectors that change from token to token at random, 1 for those constant inside images.
    """
    norms, neighbors = evidence
    gram = BlockGram([len(signs)], [norms.clone()]).symmetrize_()
    pencil = Pencil(gram, torch.ones_like(signs), signs)
    count = min(_NUM_EIGENVECTORS + 1, len(signs))
    vectors = leading_eigenpairs(pencil, count, seed=0).vectors[:, 1:]
    quotients = (vectors * (neighbors @ vectors)).sum(0)
    return float(quotients.mean()) if len(quotients) else 0.0


def automatic_weights(evidence: Sequence[Float[Tensor, "2 _rank _rank"]], signs: Sequence[Tensor]) -> list[float]:
    """Weigh layers by their smoothness; those below the mean take no part.

    Edges of natural images are sparse: what tells objects apart changes little from a token to the ones that look like
    it in the same image, and noise changes everywhere. Measured on DINOv2-small, `tests/benchmarks/layer_weights.py`.

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
