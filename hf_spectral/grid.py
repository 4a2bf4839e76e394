"""The map that a layer's tokens lie on, and the way from one map to another."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.errors import SpectralError


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """Tokens in raster order on a map of `height` rows and `width` columns.

    Args:
        height: Rows of the map, at least 1.
        width: Columns of the map, at least 1.
        num_prefix: Tokens before the first patch (class token, registers), at least 0.

    Raises:
        SpectralError: If a number lies outside its range.
    """

    height: int
    width: int
    num_prefix: int = 0

    def __post_init__(self) -> None:
        """Refuse an empty map."""
        if self.height < 1 or self.width < 1 or self.num_prefix < 0:
            raise SpectralError(
                "grid",
                expected="height and width of at least 1 and num_prefix of at least 0",
                got=f"{self.height} x {self.width} with {self.num_prefix} prefix tokens",
                fix="Give a larger image or resolution",
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def num_nodes(self) -> int:
        """Tokens on the map, prefix tokens not counted."""
        return self.height * self.width

    @property
    def num_tokens(self) -> int:
        """Tokens that the layer sees, prefix tokens counted."""
        return self.num_prefix + self.num_nodes

    def drop_prefix(self, tokens: Float[Tensor, "*batch tokens channels"]) -> Float[Tensor, "*batch nodes channels"]:
        """Return the patches among a layer's tokens.

        Args:
            tokens: Prefix tokens, then patches in raster order.

        Returns:
            The patches, a view.

        Raises:
            SpectralError: If the number of tokens is not `num_tokens`.
        """
        if tokens.shape[-2] != self.num_tokens:
            raise SpectralError(
                "tokens",
                expected=f"{self.num_prefix} prefix tokens + {self.height} x {self.width} patches = {self.num_tokens}",
                got=f"{tokens.shape[-2]} tokens",
                fix="Report the backbone: its token layout is not the one that its configuration announces",
            )
        return tokens[..., self.num_prefix :, :]

    def to_map(self, nodes: Float[Tensor, "nodes channels"]) -> Float[Tensor, "channels height width"]:
        """Lay node values out on the map.

        Args:
            nodes: One row per node, in raster order.

        Returns:
            One map per channel, contiguous.
        """
        return nodes.T.reshape(-1, self.height, self.width).contiguous()


def area_pooling(fine: int, coarse: int) -> Float[Tensor, "coarse fine"]:
    """Average pooling along one axis, exact for any pair of lengths.

    Cell i of the coarse axis covers the interval [i, i + 1) * fine / coarse; its weight on fine cell j is the share of
    that interval which lies in [j, j + 1). Every row sums to 1.

    Args:
        fine: Length of the fine axis.
        coarse: Length of the coarse axis, at most `fine`.

    Returns:
        Float64 matrix.

    Raises:
        SpectralError: If `coarse` exceeds `fine`.
    """
    if not 1 <= coarse <= fine:
        raise SpectralError("coarse", expected=f"a length from 1 to {fine}", got=coarse, fix="Pool downwards only")
    edges = torch.arange(coarse + 1, dtype=torch.float64) * (fine / coarse)
    cells = torch.arange(fine, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return overlap.clamp_min(0) * (coarse / fine)


def pools(
    fine: TokenGrid, coarse: TokenGrid, device: torch.device
) -> tuple[Float[Tensor, "_rows _fine_rows"], Float[Tensor, "_columns _fine_columns"]]:
    """Return the area pooling of one map to a coarser one, along each axis.

    Args:
        fine: The map to pool.
        coarse: The other one, of at most as many rows and columns.
        device: Device of the matrices.

    Returns:
        Float32 matrices for the rows and for the columns.
    """
    rows, columns = map(area_pooling, fine.shape, coarse.shape)
    return rows.to(device, torch.float32), columns.to(device, torch.float32)


def finest(grids: list[TokenGrid]) -> TokenGrid:
    """Return the smallest map that every given grid can be pooled from: the largest height and the largest width.

    Args:
        grids: The grids of the layers, at least one.

    Returns:
        The common grid, without prefix tokens.
    """
    return TokenGrid(max(grid.height for grid in grids), max(grid.width for grid in grids))


def as_pair(size: Any) -> tuple[int, int]:
    """Return the size that a host's configuration gives as height and width.

    Args:
        size: One number for both, or a pair.

    Returns:
        Height and width, as integers.
    """
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
