"""From the queries, keys and values of one layer to affinities between its tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from hf_spectral.config import SpectralConfig
from hf_spectral.operators import (
    AffinityOperator,
    AttentionOperator,
    ExponentialOperator,
    GramOperator,
    SparseOperator,
    nearest_neighbors,
    neighbor_graph,
)
from hf_spectral.records import AttentionRecord

# Temperature of the exponential affinity as a share of the spread of a layer's cosines, and the tokens, evenly spaced,
# that the spread is measured on. A fixed temperature would make one layer's affinity nearly flat and another's a few
# sharp peaks: BSDS500 covering of all layers together rose by 0.03 with it, on images it was not chosen on.
_RELATIVE_TEMPERATURE = 0.35
_SPREAD_TOKENS = 256
# Below it, tokens that point apart would have an affinity that float32 cannot hold.
_LEAST_SPREAD = 0.08


def affinity_operators(record: AttentionRecord, config: SpectralConfig) -> list[AffinityOperator]:
    """Return the affinities W of one layer of one image: one with heads merged, one a head with heads separate.

    Args:
        record: One layer of one image.
        config: Pathway, affinity, heads and the affinity's parameters.

    Returns:
        Symmetric operators with entries of at least 0.
    """
    query, key, value = (part[0].float() for part in (record.query, record.key, record.value))
    if config.affinity == "attention":
        heads = [slice(None)] if config.heads == "merged" else [slice(i, i + 1) for i in range(query.shape[0])]
        return [AttentionOperator(query[head], key[head], record.scale) for head in heads]
    if config.pathway == "what":
        return [_cosine_affinity(vectors, None, config) for vectors in _unit_vectors(value, config)]
    pairs = zip(_unit_vectors(query, config), _unit_vectors(key, config), strict=True)
    return [_cosine_affinity(left, right, config) for left, right in pairs]


def _unit_vectors(tokens: Float[Tensor, "heads nodes dim"], config: SpectralConfig) -> list[Tensor]:
    if config.heads == "merged":
        tokens = tokens.transpose(0, 1).reshape(1, tokens.shape[1], -1)
    return list(normalize(tokens, dim=-1).unbind(0))


def _cosine_affinity(left: Tensor, right: Tensor | None, config: SpectralConfig) -> AffinityOperator:
    if config.affinity == "exponential":
        temperature = config.temperature or _RELATIVE_TEMPERATURE * max(cosine_spread(left, right), _LEAST_SPREAD)
        return ExponentialOperator(left, right, temperature)
    if config.affinity == "knn":
        assert config.num_neighbors is not None
        assert config.threshold is not None
        edges = nearest_neighbors(left, right, config.num_neighbors, config.threshold)
        return SparseOperator(neighbor_graph(edges, left.shape[0]))
    return cosine_gram(left, right)


def cosine_spread(left: Float[Tensor, "nodes dim"], right: Float[Tensor, "nodes dim"] | None) -> float:
    """Return the standard deviation of the symmetric cosines of all pairs, of at most 256 tokens.

    With c_ij = (a_i . b_j + b_i . a_j) / 2, the sum of all c_ij^2 is [tr(A^T A B^T B) + tr(B^T A B^T A)] / 2: no matrix
    of pairs is needed.

    Args:
        left: Unit vectors a.
        right: Unit vectors b; None where they are the same as `left`.

    Returns:
        A number of at least 0.
    """
    step = -(-left.shape[0] // _SPREAD_TOKENS)
    a = left[::step]
    b = a if right is None else right[::step]
    mixed = b.T @ a
    squares = (mixed * mixed.T).sum() if right is None else ((a.T @ a) * (b.T @ b) + mixed * mixed.T).sum() / 2
    pairs = a.shape[0] ** 2
    mean = (a.sum(0) @ b.sum(0)) / pairs
    variance = float(squares / pairs - mean.square())
    return max(variance, 0.0) ** 0.5


def cosine_gram(left: Float[Tensor, "nodes dim"], right: Float[Tensor, "nodes dim"] | None) -> GramOperator:
    """Return (1 + c) / 2 as a Gram operator, with c the cosine, or the symmetric cosine of queries and keys.

    For one set of vectors F = [v, 1] / sqrt(2). For two, (q k^T + k q^T) / 2 is the difference of two Gram matrices,
    ((q + k)(q + k)^T - (q - k)(q - k)^T) / 4, hence a signed one.

    Args:
        left: Unit vectors, values or queries.
        right: Unit vectors, keys; None to compare `left` with itself.

    Returns:
        Operator of rank dim + 1, or 2 dim + 1.
    """
    ones = left.new_ones(left.shape[0], 1)
    if right is None:
        return GramOperator(torch.cat([left, ones], dim=1) / 2**0.5)
    factor = torch.cat([(left + right) / 2, (left - right) / 2, ones], dim=1) / 2**0.5
    signs = factor.new_ones(factor.shape[1])
    signs[left.shape[1] : -1] = -1
    return GramOperator(factor, signs)
