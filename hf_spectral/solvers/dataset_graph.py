"""The nearest-neighbor graph of a minibatch of images, with edges inside each image and between images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.affinities import NearestNeighbors
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, finest, pools
from hf_spectral.operators import SparseOperator, inverse_root_degree, nearest_neighbors, neighbor_graph
from hf_spectral.records import AttentionRecord, Pathway, unit_tokens

Pools = tuple[Float[Tensor, "_rows _fine_rows"], Float[Tensor, "_columns _fine_columns"]]


@dataclasses.dataclass(frozen=True)
class NeighborSettings:
    """Which pairs of tokens become edges.

    Args:
        pathway: `"what"` compares values, `"where"` queries with keys, made symmetric.
        neighbors: Number of neighbors per token inside its image, and the threshold on their cosine.
        num_inter: Number of neighbors per token in the other images of the batch.
        block_size: Tokens per block of the search: bounds the memory, does not change the result.
    """

    pathway: Pathway
    neighbors: NearestNeighbors
    num_inter: int
    block_size: int


@dataclasses.dataclass(frozen=True)
class GridGraph:
    """The layers of a batch that share the grids of its images.

    Args:
        affinity: Sum of the normalized graphs of these layers, one node per token of every image.
        num_layers: Layers in the sum.
        weight: Weight of each layer, relative to a layer on the common grids.
        pools: Rows and columns of the pooling from the common grid of each image; None where both grids are equal.
    """

    affinity: SparseOperator
    num_layers: int
    weight: float
    pools: tuple[Pools | None, ...]


def batch_graphs(batch: Sequence[Sequence[AttentionRecord]], settings: NeighborSettings) -> list[GridGraph]:
    """Build the graphs of all layers of a batch of images.

    Args:
        batch: The layers of each image that take part.
        settings: Which edges to take.

    Returns:
        One entry for all layers of equal grids: layers of one resolution are added up.

    Raises:
        SpectralError: If the images have different layers.
    """
    names = [[record.name for record in records] for records in batch]
    if any(one != names[0] for one in names):
        raise SpectralError(
            "images", expected="the same layers in every image", got="others", fix="Capture all with one backbone"
        )
    commons = [finest([record.grid for record in records]) for records in batch]
    sums: dict[tuple[tuple[int, int], ...], tuple[Tensor, int]] = {}
    for layer in zip(*batch, strict=True):
        grids = tuple(record.grid.shape for record in layer)
        matrix = _normalized(_edges(layer, settings))
        if grids in sums:
            matrix = (sums[grids][0] + matrix).coalesce()
        sums[grids] = (matrix, 1 + (sums[grids][1] if grids in sums else 0))
    nodes = sum(one.num_nodes for one in commons)
    return [
        GridGraph(
            SparseOperator(matrix),
            count,
            # Ratio of the sides: a layer of half the resolution weighs twice as much.
            (nodes / matrix.shape[0]) ** 0.5,
            tuple(
                None if common.shape == grid else pools(common, TokenGrid(*grid), matrix.device)
                for common, grid in zip(commons, grids, strict=True)
            ),
        )
        for grids, (matrix, count) in sums.items()
    ]


def _edges(layer: Sequence[AttentionRecord], settings: NeighborSettings) -> Tensor:
    """Return the symmetric sparse graph of one layer over all tokens of the batch."""
    queries, keys = _unit_tokens(layer, settings.pathway)
    places = ((record.grid.num_nodes, place) for place, record in enumerate(layer))
    images = torch.cat([torch.full((nodes,), place, device=queries.device) for nodes, place in places])
    edges = nearest_neighbors(
        queries,
        keys,
        settings.neighbors.num_neighbors,
        settings.neighbors.threshold,
        images=images,
        num_between=settings.num_inter,
        block_size=settings.block_size,
    )
    return neighbor_graph(edges, len(queries))


def _unit_tokens(layer: Sequence[AttentionRecord], pathway: Pathway) -> tuple[Tensor, Tensor | None]:
    """Return what `nearest_neighbors` compares, heads merged, all images in one."""
    parts = zip(*(unit_tokens(record, pathway) for record in layer), strict=True)
    left, *right = [torch.cat([tokens[0] for tokens in part]) for part in parts]
    return left, right[0] if right else None


def _normalized(graph: Tensor) -> Tensor:
    """Return D^-1/2 W D^-1/2; a node without edges keeps an empty row."""
    scale = inverse_root_degree(torch.sparse.sum(graph, dim=1).to_dense())
    rows, columns = graph.indices()
    values = graph.values() * scale[rows] * scale[columns]
    return torch.sparse_coo_tensor(graph.indices(), values, graph.shape, is_coalesced=True, check_invariants=False)
