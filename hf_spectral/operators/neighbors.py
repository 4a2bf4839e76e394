"""The one search for nearest neighbors among tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Edges = tuple[Int[Tensor, " edges"], Int[Tensor, " edges"], Float[Tensor, " edges"]]


def nearest_neighbors(
    left: Float[Tensor, "nodes dim"],
    right: Float[Tensor, "nodes dim"] | None,
    num_neighbors: int,
    threshold: float,
    *,
    asking: Int[Tensor, " asking"] | None = None,
    images: Int[Tensor, " nodes"] | None = None,
    num_between: int = 0,
    block_size: int = 1024,
) -> Edges:
    """Find the nearest other tokens of each token by cosine c_ij = a_i . b_j, or (a_i . b_j + b_i . a_j) / 2.

    Ties are broken by `torch.topk`, in the same way in every run on one machine.

    Args:
        left: Unit vectors a.
        right: Unit vectors b, for the symmetric cosine of queries and keys; None compares `left` with itself.
        num_neighbors: Neighbors per token at most.
        threshold: Tokens with cosines at or below it are not neighbors.
        asking: Tokens whose neighbors are sought; None means all.
        images: Image of each token; neighbors are then sought in the token's own image.
        num_between: Further neighbors per token, sought among the other images; used with `images` only.
        block_size: Tokens per block of the search: bounds the memory, does not change the result.

    Returns:
        For each pair: position of the first token in `asking`, index of its neighbor, and their cosine.
    """
    num_nodes = left.shape[0]
    asking = torch.arange(num_nodes, device=left.device) if asking is None else asking
    found: list[Edges] = []
    for start, block in zip(range(0, len(asking), block_size), asking.split(block_size), strict=True):
        cosines = left[block] @ (left if right is None else right).T
        if right is not None:
            cosines.add_(right[block] @ left.T).div_(2)
        cosines.scatter_(1, block[:, None], -torch.inf)
        own = None if images is None else images[block, None] == images
        for count, left_out in [(num_neighbors, None)] if own is None else [(num_neighbors, ~own), (num_between, own)]:
            candidates = cosines if left_out is None else cosines.masked_fill(left_out, -torch.inf)
            values, neighbors = candidates.topk(min(count, num_nodes - 1), dim=1)
            rows, ranks = (values > threshold).nonzero(as_tuple=True)
            found.append((start + rows, neighbors[rows, ranks], values[rows, ranks]))
    rows, columns, weights = (torch.cat(part) for part in zip(*found, strict=True))
    return rows, columns, weights


def neighbor_graph(edges: Edges, num_nodes: int) -> Float[Tensor, "nodes nodes"]:
    """Return the symmetric sparse graph (N + N^T) / 2 of the directed edges N.

    Args:
        edges: Directed edges, searched for all tokens.
        num_nodes: Number of tokens.

    Returns:
        Sparse matrix: the cosine where two tokens are neighbors of each other, half of it where only one is.
    """
    rows, columns, weights = edges
    indices = torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])])
    shape = (num_nodes, num_nodes)
    return torch.sparse_coo_tensor(indices, (weights / 2).repeat(2), shape, check_invariants=False).coalesce()
