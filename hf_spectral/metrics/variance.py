"""What position, image and identity explain of dataset-level eigenvectors, from sums: memory holds no maps."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from hf_spectral.errors import SpectralError

# Below this share of the mean square, a variance is rounding.
_CONSTANT = 1e-12
# Images, in turns, go to one of two halves: what the clusters of one half predict is tested on the other.
_HALVES = 2


class VarianceShares:
    """Adds up, image by image, what an analysis of variance of dataset-level eigenvectors needs.

    A value of eigenvector j at position p of image i splits into mean + image effect + position effect + rest, and the
    rest into what the clusters explain and noise. Every image weighs the same. See `where_score` and `what_score`.

    Args:
        cells: Rows and columns of the cells of equal area that stand for positions.
        num_clusters: Clusters that tokens may belong to; 0 if none are given.
    """

    def __init__(self, cells: tuple[int, int], num_clusters: int = 0) -> None:
        self.num_images = 0
        self._cells = cells
        self._num_clusters = num_clusters
        self._halves: list[_Half] = []

    def add(
        self, maps: Float[Tensor, "eigenvectors height width"], clusters: Integer[Tensor, "height width"] | None = None
    ) -> None:
        """Add one image.

        Args:
            maps: Its part of the eigenvectors.
            clusters: Cluster of each token, from 0; needed for `what`.

        Raises:
            SpectralError: If the number of eigenvectors is not that of the images before.
        """
        if not self._halves:
            count = self._cells[0] * self._cells[1]
            self._halves = [_Half(len(maps), count, self._num_clusters) for _ in range(_HALVES)]
        half = self._halves[self.num_images % _HALVES]
        if len(maps) != len(half.mean):
            raise SpectralError(
                "eigenvectors",
                expected="the same number of eigenvectors for every image",
                got=sorted({len(maps), len(half.mean)}),
                fix="Pass the maps of one basis",
            )
        values = maps.detach().to("cpu", torch.float64).flatten(1)
        index = position_cells(maps.shape[1], maps.shape[2], self._cells)
        half.add(values, index, None if clusters is None else clusters.flatten().cpu().long())
        self.num_images += 1

    def where(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share that position explains: Var_p(mean_i x) / Var(x).

        Returns:
            0 to 1 an eigenvector.
        """
        weight = torch.stack([half.weight for half in self._halves]).sum(0)
        total = torch.stack([half.total for half in self._halves]).sum(0)
        used = weight > 0
        offsets = total[:, used] / weight[used] - self._mean()[:, None]
        return self._share((offsets**2 * weight[used]).sum(1) / self.num_images)

    def image(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share that the image alone explains: Var_i(mean_p x) / Var(x).

        Returns:
            0 to 1 an eigenvector.
        """
        squares = torch.stack([half.squared_means for half in self._halves]).sum(0) / self.num_images
        return self._share(squares - self._mean() ** 2)

    def what(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share that the clusters explain beyond position and image: see `what_score`.

        Returns:
            0 to 1 an eigenvector.

        Raises:
            SpectralError: If a half holds fewer than two images.
        """
        require_images(self.num_images, 2 * _HALVES)
        (means, weights), (others, other_weights) = (half.cluster_means() for half in self._halves)
        # A cluster that one half lacks predicts nothing.
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
    """Sums over one half of the images; a token of an image of n tokens counts 1 / n."""

    def __init__(self, num_eigenvectors: int, num_cells: int, num_clusters: int) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        self.num_images = 0
        self.mean, self.square, self.squared_means = (zeros(num_eigenvectors) for _ in range(3))
        self.weight, self.total = zeros(num_cells), zeros(num_eigenvectors, num_cells)
        # Of the values less their image's mean: by cell, by cluster, and the weight of each (cluster, cell).
        self.centered = zeros(num_eigenvectors, num_cells)
        self.by_cluster, self.table = zeros(num_eigenvectors, num_clusters), zeros(num_clusters, num_cells)

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
        """Return each cluster's mean of what image and position leave over in this half, and its weight."""
        position = self.centered / self.weight.clamp_min(torch.finfo(torch.float64).tiny)
        weights = self.table.sum(1)
        rest = self.by_cluster - position @ self.table.T
        # The position's mean over n images holds 1 / n of the image's own value: as for a variance, n - 1 degrees.
        scale = self.num_images / (self.num_images - 1)
        return scale * rest / weights.clamp_min(torch.finfo(torch.float64).tiny), weights


def position_cells(height: int, width: int, cells: tuple[int, int]) -> Integer[Tensor, " nodes"]:
    """Return the cell that holds the center of each token.

    Args:
        height: Rows of tokens.
        width: Columns of tokens.
        cells: Rows and columns of cells.

    Returns:
        One index a token in raster order.
    """
    row = ((torch.arange(height) + 0.5) * cells[0] / height).floor().long()
    column = ((torch.arange(width) + 0.5) * cells[1] / width).floor().long()
    return (row[:, None] * cells[1] + column).flatten()


def require_images(count: int, least: int) -> None:
    """Refuse to score too few images.

    Args:
        count: Images at hand.
        least: Images needed.

    Raises:
        SpectralError: If there are fewer.
    """
    if count < least:
        raise SpectralError(
            "eigenvectors",
            expected=f"maps of at least {least} images",
            got=count,
            fix="Score a data set, not one image",
        )
