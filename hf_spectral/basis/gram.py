"""The Gram matrix C = H^T B^-1 H of a dataset's normalized factors, and the grids of an image that B joins.

Only blocks on and above the diagonal are formed and stored. Products are made in float32, one image at a time, and
added up in float64, so that rounding does not grow with the number of images or depend on their order.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.grid import TokenGrid, area_pooling, finest

Shape = tuple[int, int]

# Rows multiplied at once: bounds the memory of a large image, and the length of a sum in float32.
_ROWS = 2048


@dataclasses.dataclass(frozen=True)
class Coupling:
    """Products of the pooling matrices of one image's grids with the inverse of the mass B = sum_l w_l P_l^T P_l.

    Args:
        common: The common grid.
        spread: B^-1 P_g^T for each grid g.
        between: P_g B^-1 P_h^T for each pair of grids.
    """

    common: TokenGrid
    spread: dict[Shape, Float[Tensor, "fine coarse"]]
    between: dict[tuple[Shape, Shape], Float[Tensor, "coarse other"]]


def coupling(shapes: Sequence[Shape], weights: Sequence[float], device: torch.device) -> Coupling | None:
    """Return the coupling of an image's layers.

    Args:
        shapes: Height and width of each layer's grid.
        weights: Weight of each layer, above 0, together 1.
        device: Where the matrices are needed.

    Returns:
        The coupling, or None where all layers share one grid: B is then the identity.
    """
    total: dict[Shape, float] = {}
    for shape, weight in zip(shapes, weights, strict=True):
        total[shape] = total.get(shape, 0.0) + weight
    return None if len(total) == 1 else _coupling(tuple(total.items()), device)


# Images of one size share a coupling. For a grid of 64 x 64 it may take hundreds of megabytes, so few are kept.
@functools.lru_cache(maxsize=2)
def _coupling(weighted: tuple[tuple[Shape, float], ...], device: torch.device) -> Coupling:
    shapes = [shape for shape, _ in weighted]
    common = finest([TokenGrid(*shape) for shape in shapes])
    pools = {shape: torch.kron(*map(area_pooling, common.shape, shape)) for shape in shapes}
    mass = torch.zeros(common.num_nodes, common.num_nodes, dtype=torch.float64)
    for shape, weight in weighted:
        mass.addmm_(pools[shape].T, pools[shape], alpha=weight)
    lower, failed = torch.linalg.cholesky_ex(mass)
    # If no layer lies on the common grid itself (a tall grid beside a broad one), what no layer sees is left at zero.
    inverse = torch.linalg.pinv(mass, hermitian=True, rtol=1e-10) if failed else torch.cholesky_inverse(lower)
    spread = {shape: inverse @ pool.T for shape, pool in pools.items()}
    between = {(left, right): (pools[left] @ spread[right]).float().to(device) for left in shapes for right in shapes}
    return Coupling(common, {shape: part.float().to(device) for shape, part in spread.items()}, between)


class BlockGram:
    """A symmetric matrix that is summed over images, stored as the upper part of its block rows, one per layer.

    Args:
        ranks: Columns of each layer's factor.
        blocks: Block row l holds columns from layer l on, float64; None starts from zero.
        device: Where the blocks live.
    """

    def __init__(
        self, ranks: Sequence[int], blocks: Sequence[Tensor] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.ranks = tuple(ranks)
        self.starts = (0, *itertools.accumulate(self.ranks))
        self.blocks = (
            [
                torch.zeros(rank, self.width - start, dtype=torch.float64, device=device)
                for rank, start in zip(self.ranks, self.starts, strict=False)
            ]
            if blocks is None
            else list(blocks)
        )

    @property
    def width(self) -> int:
        """Rows of the whole matrix."""
        return self.starts[-1]

    def add(
        self,
        factors: Sequence[Float[Tensor, "_nodes _rank"]],
        shapes: Sequence[Shape],
        coupling: Coupling | None,
    ) -> None:
        """Add one image: G_l^T P_l B^-1 P_m^T G_m to the block of layers l and m.

        Args:
            factors: G of each layer, float32.
            shapes: Grid of each layer.
            coupling: Of these grids; None where there is one grid and the blocks are G_l^T G_m.
        """
        if coupling is None:
            for part in torch.cat(list(factors), dim=1).split(_ROWS):
                self._add_rows(part.split(self.ranks, dim=1))
            return
        runs = [(shape, [i for i, _ in run]) for shape, run in itertools.groupby(enumerate(shapes), lambda one: one[1])]
        for left, right in itertools.combinations_with_replacement(runs, 2):
            self._add_runs(factors, left, right, coupling)

    def _add_rows(self, layers: Sequence[Tensor]) -> None:
        """Add G_l^T G_m, a pair of layers at a time: each product is added while it is in the processor's cache."""
        for left, block in enumerate(self.blocks):
            parts = block.split(self.ranks[left:], dim=1)
            for part, right in zip(parts, layers[left:], strict=True):
                part.add_(layers[left].T @ right)

    def _add_runs(
        self,
        factors: Sequence[Tensor],
        left: tuple[Shape, list[int]],
        right: tuple[Shape, list[int]],
        coupling: Coupling,
    ) -> None:
        """Add the blocks between two runs of consecutive layers, each on one grid, contracted over the smaller grid."""
        rows, columns = (torch.cat([factors[i] for i in run], dim=1) for _, run in (left, right))
        between = coupling.between[left[0], right[0]]
        if rows.shape[0] <= columns.shape[0]:
            columns = between @ columns
        else:
            rows = between.T @ rows
        first, last = right[1][0], right[1][-1]
        for layer in left[1]:
            begin = max(first, layer)  # Within one run, what lies below the diagonal is left out.
            own = rows[:, self.starts[layer] - self.starts[left[1][0]] :][:, : self.ranks[layer]]
            target = slice(self.starts[begin] - self.starts[layer], self.starts[last + 1] - self.starts[layer])
            self.blocks[layer][:, target] += own.T @ columns[:, self.starts[begin] - self.starts[first] :]

    def matmul(self, vectors: Float[Tensor, "width vectors"]) -> Float[Tensor, "width vectors"]:
        """Multiply, each stored block serving on both sides of the diagonal.

        Args:
            vectors: One vector per column, float64.

        Returns:
            The products.
        """
        # On a CPU, float64 products with a multiple of 24 columns took half the time of others (MKL).
        count = vectors.shape[1]
        vectors = torch.nn.functional.pad(vectors, (0, -count % 24 if vectors.device.type == "cpu" else 0))
        product = torch.zeros_like(vectors)
        for block, start, rank in zip(self.blocks, self.starts, self.ranks, strict=False):
            product[start : start + rank] += block @ vectors[start:]
            product[start + rank :] += block[:, rank:].T @ vectors[start : start + rank]
        return product[:, :count]

    def between(self, left: int, right: int) -> Float[Tensor, "_rows _columns"]:
        """Return the block of two layers.

        Args:
            left: Position of the layer of its rows.
            right: Position of the layer of its columns, at least `left`.

        Returns:
            A view.
        """
        start = self.starts[right] - self.starts[left]
        return self.blocks[left][:, start : start + self.ranks[right]]

    def diagonal(self) -> Float[Tensor, " width"]:
        """Return the diagonal.

        Returns:
            Numbers of at least 0, up to rounding.
        """
        return torch.cat([block.diagonal() for block in self.blocks])

    def symmetrize_(self) -> BlockGram:
        """Make the blocks on the diagonal symmetric to the last bit; calling it again changes nothing.

        Returns:
            The same object.
        """
        for block, rank in zip(self.blocks, self.ranks, strict=True):
            square = block[:, :rank]
            square.copy_((square + square.T) / 2)
        return self

    def to_dense(self) -> Float[Tensor, "width width"]:
        """Form the whole matrix.

        Returns:
            The matrix, for tests and for small widths.
        """
        dense = torch.zeros(self.width, self.width, dtype=torch.float64, device=self.blocks[0].device)
        for block, start, rank in zip(self.blocks, self.starts, self.ranks, strict=False):
            dense[start : start + rank, start:] = block
            dense[start:, start : start + rank] = block.T
        return dense

    def restricted(self, positions: Sequence[int]) -> BlockGram:
        """Return the matrix of some of the layers.

        Args:
            positions: Ascending positions of the layers wanted.

        Returns:
            The same memory where all are wanted, a copy otherwise.
        """
        if len(positions) == len(self.ranks):
            return self
        blocks = []
        for i, layer in enumerate(positions):
            blocks.append(torch.cat([self.between(layer, other) for other in positions[i:]], dim=1))
        return BlockGram([self.ranks[layer] for layer in positions], blocks)
