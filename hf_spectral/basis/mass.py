"""Layers of different resolution in one image: pooling from the common grid, and the mass B = sum_l w_l P_l^T P_l."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.grid import TokenGrid, area_pooling, finest

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Coupling:
    """How the grids of one image meet through the inverse of its mass matrix.

    Args:
        common: The common grid.
        spread: B^-1 P_g^T for each grid g.
        between: P_g B^-1 P_h^T for each pair of grids.
    """

    common: TokenGrid
    spread: dict[Shape, Float[Tensor, "fine coarse"]]
    between: dict[tuple[Shape, Shape], Float[Tensor, "coarse other"]]


def coupling(shapes: Sequence[Shape], weights: Sequence[float]) -> Coupling | None:
    """Return the coupling of an image's layers.

    Args:
        shapes: Height and width of each layer's grid.
        weights: Weight of each layer, above 0, together 1.

    Returns:
        The coupling, or None where all layers share one grid: B is then the identity.
    """
    total: dict[Shape, float] = {}
    for shape, weight in zip(shapes, weights, strict=True):
        total[shape] = total.get(shape, 0.0) + weight
    return None if len(total) == 1 else _coupling(tuple(total.items()))


# Images of one size share it; it may hold hundreds of megabytes for a grid of 64 x 64, so that few are kept.
@functools.lru_cache(maxsize=2)
def _coupling(weighted: tuple[tuple[Shape, float], ...]) -> Coupling:
    shapes = [shape for shape, _ in weighted]
    common = finest([TokenGrid(*shape) for shape in shapes])
    pools = {
        (height, width): torch.kron(area_pooling(common.height, height), area_pooling(common.width, width))
        for height, width in shapes
    }
    mass = torch.zeros(common.num_nodes, common.num_nodes, dtype=torch.float64)
    for shape, weight in weighted:
        mass.addmm_(pools[shape].T, pools[shape], alpha=weight)
    lower, failed = torch.linalg.cholesky_ex(mass)
    # No layer on the common grid itself (a tall grid beside a broad one): what no layer sees is left at zero.
    inverse = torch.linalg.pinv(mass, hermitian=True, rtol=1e-10) if failed else torch.cholesky_inverse(lower)
    spread = {shape: inverse @ pool.T for shape, pool in pools.items()}
    between = {(left, right): (pools[left] @ spread[right]).float() for left in shapes for right in shapes}
    return Coupling(common, {shape: part.float() for shape, part in spread.items()}, between)
