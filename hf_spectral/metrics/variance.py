"""Analysis of variance of dataset-level eigenvectors from running sums, without keeping the maps in memory."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.torch_state import plain_torch

# A variance below this share of the mean square is rounding error.
_CONSTANT = 1e-12
# Images alternate between two halves: the cluster means of one half are tested on the other.
_HALVES = 2


class VarianceShares:
    """Accumulates, image by image, the sums for an analysis of variance of dataset-level eigenvectors.

    The value of an eigenvector at a token is split into mean + image effect + position effect + residual, and the
    residual into a part that the clusters explain and noise. All images have the same weight. See `where_score`,
    `image_score` and `what_score` for the definitions.

    Args:
        cells: Number of rows and columns of equal cells into which positions are binned.
        num_segments: Number of clusters of tokens; 0 if no clusters are given.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import VarianceShares
        >>> shares = VarianceShares(cells=(8, 8))
        >>> layout = torch.rand(1, 8, 8)
        >>> for level in (0.0, 1.0):
        ...     shares.add(layout + level)
        >>> round(float(shares.where() + shares.image()), 6)
        1.0
    """

    def __init__(self, cells: tuple[int, int], num_segments: int = 0) -> None:
        self.num_images = 0
        self._cells = cells
        self._num_segments = num_segments
        self._halves: list[_Half] = []

    @plain_torch()
    def add(
        self, maps: Float[Tensor, "eigenvectors height width"], clusters: Integer[Tensor, "height width"] | None = None
    ) -> None:
        """Add one image.

        Args:
            maps: Eigenvectors of the image.
            clusters: Cluster of each token, non-negative integers below `num_segments`. Required for `what`.

        Raises:
            SpectralError: If the number of eigenvectors differs from that of previous images.
        """
        if not self._halves:
            count = self._cells[0] * self._cells[1]
            self._halves = [_Half(len(maps), count, self._num_segments) for _ in range(_HALVES)]
        half = self._halves[self.num_images % _HALVES]
        if len(maps) != len(half.mean):
            raise SpectralError(
                "eigenvectors",
                expected="the same number of eigenvectors for every image",
                got=sorted({len(maps), len(half.mean)}),
                fix="Pass the eigenvectors of one basis",
            )
        values = maps.detach().to("cpu", torch.float64).flatten(1)
        index = position_cells(maps.shape[1], maps.shape[2], self._cells)
        half.add(values, index, None if clusters is None else clusters.flatten().cpu().long())
        self.num_images += 1

    @plain_torch()
    def where(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share of the variance that position explains, Var_p(mean_i x) / Var(x).

        Returns:
            One value from 0 to 1 per eigenvector.
        """
        weight = torch.stack([half.weight for half in self._halves]).sum(0)
        total = torch.stack([half.total for half in self._halves]).sum(0)
        used = weight > 0
        offsets = total[:, used] / weight[used] - self._mean()[:, None]
        return self._share((offsets**2 * weight[used]).sum(1) / self.num_images)

    @plain_torch()
    def image(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share of the variance that the image explains, Var_i(mean_p x) / Var(x).

        Returns:
            One value from 0 to 1 per eigenvector.
        """
        squares = torch.stack([half.squared_means for half in self._halves]).sum(0) / self.num_images
        return self._share(squares - self._mean() ** 2)

    @plain_torch()
    def what(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share of the variance that the clusters explain beyond position and image, see `what_score`.

        Returns:
            One value from 0 to 1 per eigenvector.

        Raises:
            SpectralError: If fewer than four images were added.
        """
        require_images(self.num_images, 2 * _HALVES)
        (means, weights), (others, other_weights) = (half.cluster_means() for half in self._halves)
        # A cluster that occurs in one half only cannot be tested.
        shared = (weights > 0) & (other_weights > 0)
        explained = (means * others * ((weights + other_weights) * shared)).sum(1) / self.num_images
        return self._share(explained)

    def _mean(self) -> Tensor:
        return torch.stack([half.mean for half in self._halves]).sum(0) / self.num_images

    def _share(self, explained: Tensor) -> Tensor:
        square = torch.stack([half.square for half in self._halves]).sum(0) / self.num_images
        variance = square - self._mean() ** 2
        share = explained / variance.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(variance <= _CONSTANT * square, 0.0, share).clamp(0, 1)


class _Half:
    """Sums over one half of the images. In an image with n tokens, each token has weight 1 / n."""

    def __init__(self, num_eigenvectors: int, num_cells: int, num_segments: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.num_images = 0
        self.mean, self.square, self.squared_means = (zeros(num_eigenvectors) for _ in range(3))
        self.weight, self.total = zeros(num_cells), zeros(num_eigenvectors, num_cells)
        # Sums of the values minus the mean of their image, per cell and per cluster; weight of each (cluster, cell).
        self.centered = zeros(num_eigenvectors, num_cells)
        self.by_cluster, self.table = zeros(num_eigenvectors, num_segments), zeros(num_segments, num_cells)

    def add(
        self,
        values: Float[Tensor, "eigenvectors nodes"],
        cells: Integer[Tensor, " nodes"],
        clusters: Integer[Tensor, " nodes"] | None,
    ) -> None:
        share = 1 / values.shape[1]
        mean = values.mean(1)
        centered = (values - mean[:, None]) * share
        shares = torch.full((values.shape[1],), share, dtype=torch.float64)
        self.num_images += 1
        self.mean += mean
        self.square += values.square().mean(1)
        self.squared_means += mean.square()
        self.weight.index_add_(0, cells, shares)
        self.total.index_add_(1, cells, values * share)
        self.centered.index_add_(1, cells, centered)
        if clusters is not None:
            self.by_cluster.index_add_(1, clusters, centered)
            self.table.view(-1).index_add_(0, clusters * len(self.weight) + cells, shares)

    def cluster_means(self) -> tuple[Float[Tensor, "eigenvectors clusters"], Float[Tensor, " clusters"]]:
        """Return the mean residual of each cluster in this half, after image and position effects, and its weight."""
        position = self.centered / self.weight.clamp_min(torch.finfo(torch.float64).tiny)
        weights = self.table.sum(1)
        rest = self.by_cluster - position @ self.table.T
        # The mean of a position over n images contains 1 / n of each image's own value, as in a sample variance.
        scale = self.num_images / (self.num_images - 1)
        return scale * rest / weights.clamp_min(torch.finfo(torch.float64).tiny), weights


def position_cells(height: int, width: int, cells: tuple[int, int]) -> Integer[Tensor, " nodes"]:
    """Return the cell that contains the center of each token.

    Args:
        height: Number of rows of tokens.
        width: Number of columns of tokens.
        cells: Number of rows and columns of cells.

    Returns:
        One cell index per token, in raster order.
    """
    row = ((torch.arange(height, dtype=torch.float32) + 0.5) * cells[0] / height).floor().long()
    column = ((torch.arange(width, dtype=torch.float32) + 0.5) * cells[1] / width).floor().long()
    return (row[:, None] * cells[1] + column).flatten()


def require_images(count: int, least: int) -> None:
    """Raise an error if there are too few images for a score.

    Args:
        count: Number of images.
        least: Number of images that the score needs.

    Raises:
        SpectralError: If `count` is below `least`.
    """
    if count < least:
        raise SpectralError(
            "eigenvectors",
            expected=f"maps of at least {least} images",
            got=count,
            fix="Score a dataset with more images",
        )
