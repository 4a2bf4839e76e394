"""Scores of dataset-level eigenvectors: the share of position (*where*) and of identity (*what*), without labels."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hf_spectral.checks import require_positive_int, require_seed
from hf_spectral.errors import SpectralError
from hf_spectral.torch_state import plain_torch

Maps = Float[Tensor, "images eigenvectors height width"] | Sequence[Float[Tensor, "eigenvectors _h _w"]]

#: Number of cells along each side of the image, used if the grids of the images differ.
DEFAULT_BINS = 16
# A variance below this share of the mean square is rounding error.
_CONSTANT = 1e-12
_TINY = torch.finfo(torch.float64).tiny
# Images alternate between two halves: the cluster means of one half are tested on the other.
_HALVES = 2
# k-means is fitted on at most this many tokens; the others are assigned to the nearest centroid.
_FITTED_TOKENS = 50_000


@plain_torch()
def where_score(eigenvectors: Maps, bins: int | None = None) -> Float[Tensor, " eigenvectors"]:
    """Return the share of each dataset-level eigenvector's variance that the position of a token explains.

    The score is the correlation ratio of eigenvector j given position p over images i,
    R_j^2 = Var_p(mean_i x_ijp) / Var_ip(x_ijp). If the grids of the images differ, each image is divided into
    `bins` x `bins` equal cells, and a token belongs to the cell that contains its center. All images have the same
    weight. The eigenvectors must come from one dataset-level problem, because the signs of those of separate images
    are arbitrary. Use many images: with n images, maps that are independent of position still score about 1/n.

    Args:
        eigenvectors: Eigenvectors of at least two images, as one tensor, or as a sequence with one entry per image.
        bins: Number of cells along each side. None takes the token grid if all images share one, otherwise 16.

    Returns:
        One score per eigenvector, from 0 (independent of position, or constant) to 1 (the same map in every image).

    Raises:
        SpectralError: If there are fewer than two images, or the number of eigenvectors differs between images.

    Reference:
        Pearson's correlation ratio, applied to the pathways of Zhang, Yunis, Maire, CVPR 2024.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import where_score
        >>> same_map_in_every_image = torch.rand(1, 2, 6, 6).expand(10, 2, 6, 6)
        >>> [round(score, 3) for score in where_score(same_map_in_every_image).tolist()]
        [1.0, 1.0]
    """
    return _added(_images(eigenvectors, 2), bins).where()


@plain_torch()
def image_score(eigenvectors: Maps) -> Float[Tensor, " eigenvectors"]:
    """Return the share of each dataset-level eigenvector's variance that the image of a token explains.

    The score is Var_i(mean_p x_ijp) / Var_ip(x_ijp). If all images share one grid, `where_score`, `image_score` and
    `what_score` add up to at most 1; the remainder is noise.

    Args:
        eigenvectors: Eigenvectors of at least two images, as one tensor, or as a sequence with one entry per image.

    Returns:
        One score per eigenvector, from 0 (all images have the same mean, or constant) to 1 (every image is uniform).

    Raises:
        SpectralError: If there are fewer than two images, or the number of eigenvectors differs between images.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import image_score
        >>> uniform_images = torch.rand(10, 2, 1, 1).expand(10, 2, 6, 6)
        >>> [round(score, 3) for score in image_score(uniform_images).tolist()]
        [1.0, 1.0]
    """
    return _added(_images(eigenvectors, 2), 1).image()


@plain_torch()
def what_score(
    eigenvectors: Maps,
    clusters: Sequence[Integer[Tensor, "_h _w"]] | None = None,
    num_segments: int = 20,
    bins: int | None = None,
    seed: int = 0,
) -> Float[Tensor, " eigenvectors"]:
    """Return the share of each dataset-level eigenvector's variance that identity explains beyond position and image.

    The score is based on an analysis of variance with two additive effects, x_ijp = mean + image_i + position_p +
    r_ijp. The residual r contains identity, which is at different positions in different images, and noise. To separate
    the two, the tokens are partitioned into clusters c:

        what_j = sum_c weight_c m_jc m'_jc / Var_ip(x_ijp),

    where m_jc and m'_jc are the means of r over cluster c in the even and in the odd images. Image and position effects
    are estimated separately in each half, so for noise the expected product is 0 for any number of clusters, and a
    cluster contributes only if its mean is the same in both halves. (If both halves were the same data, the sum would
    be the variance between clusters, as in the correlation ratio.)

    By default, `surrounding_clusters` infers the cluster of each token from its neighbors, without the token's own
    value. As a consequence, identity counts only if it extends over several tokens, tokens at the border of an object
    may be assigned wrongly, so that even perfect identity scores slightly below 1, and smooth random maps are partly
    counted as identity. Pass `clusters` (from a reference representation, or human labels) to compare several
    representations; with labels, the score is the share that the labeled classes explain. The two halves should not
    contain near-duplicates of each other's images.

    Args:
        eigenvectors: Eigenvectors of at least four images, as one tensor, or as a sequence with one entry per image.
        clusters: One map per image with the cluster of each token, non-negative integers. None infers the clusters.
        num_segments: Number of clusters to infer.
        bins: Number of cells along each side. None takes the token grid if all images share one, otherwise 16.
        seed: Random seed of k-means.

    Returns:
        One score per eigenvector, from 0 (only position, image and noise, or constant) to 1 (the value depends only on
        the identity of the token). `where_score` + `image_score` + `what_score` is at most 1, up to sampling error.

    Raises:
        SpectralError: If there are fewer than four images, the number of eigenvectors differs between images, or
            `clusters` does not match the images.

    Reference:
        Our own. Two-way analysis of variance and the correlation ratio after Fisher (1925); the product of independent
        halves after the cross-validated distances of Walther et al., NeuroImage 2016.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import what_score
        >>> classes = torch.randint(2, (200, 6, 6), generator=torch.Generator().manual_seed(0))
        >>> bool(what_score(classes[:, None].float(), clusters=list(classes)) > 0.9)
        True
    """
    maps = _images(eigenvectors, 2 * _HALVES)
    if clusters is None:
        clusters = surrounding_clusters(maps, _cells(maps, bins), num_segments, seed)
    grids = [tuple(one.shape[1:]) for one in maps]
    if [tuple(one.shape) for one in clusters] != grids or min(int(one.min()) for one in clusters) < 0:
        raise SpectralError(
            "clusters",
            expected=f"{len(maps)} maps of integers from 0, each of the size of its image's token grid",
            got=f"{len(clusters)} maps, of other sizes or with negative numbers",
            fix="Resize the labels to the token grid first, with void as a separate cluster",
        )
    return _added(maps, bins, clusters).what()


def _added(
    maps: list[Tensor], bins: int | None, clusters: Sequence[Integer[Tensor, "_h _w"]] | None = None
) -> VarianceShares:
    count = 0 if clusters is None else 1 + max(int(one.max()) for one in clusters)
    shares = VarianceShares(_cells(maps, bins), count)
    for image, one in enumerate(maps):
        shares.add(one, None if clusters is None else clusters[image])
    return shares


def _cells(maps: list[Tensor], bins: int | None) -> tuple[int, int]:
    if bins is None and len({one.shape[1:] for one in maps}) == 1:
        return maps[0].shape[1], maps[0].shape[2]
    side = DEFAULT_BINS if bins is None else require_positive_int("bins", bins)
    return side, side


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

    def _start(self, count: int) -> None:
        """Set all sums, one per half of the images, to 0. In an image with n tokens, each token has weight 1 / n."""
        zeros = functools.partial(torch.zeros, dtype=torch.float64)
        num_cells = self._cells[0] * self._cells[1]
        self._mean, self._square, self._squared_mean = (zeros(_HALVES, count) for _ in range(3))
        self._weight, self._total = zeros(_HALVES, num_cells), zeros(_HALVES, count, num_cells)
        # Of the values minus the mean of their image, per cell and per cluster; weight of each (cluster, cell).
        self._centered = zeros(_HALVES, count, num_cells)
        self._by_cluster = zeros(_HALVES, count, self._num_segments)
        self._table = zeros(_HALVES, self._num_segments, num_cells)

    @plain_torch()
    def add(
        self, maps: Float[Tensor, "eigenvectors height width"], clusters: Integer[Tensor, "height width"] | None = None
    ) -> None:
        """Add one image.

        Args:
            maps: Eigenvectors of the image.
            clusters: Cluster of each token, non-negative integers below `num_segments`; None if that is 0.

        Raises:
            SpectralError: If the number of eigenvectors differs from that of previous images, or there are no clusters
                and `num_segments` is not 0.
        """
        _require_clusters((clusters is None) == (self._num_segments == 0))
        if not self.num_images:
            self._start(len(maps))
        if len(maps) != self._mean.shape[1]:
            raise SpectralError(
                "eigenvectors",
                expected="the same number of eigenvectors for every image",
                got=sorted({len(maps), self._mean.shape[1]}),
                fix="Pass the eigenvectors of one basis",
            )
        values = maps.detach().to("cpu", torch.float64).flatten(1)
        half, share = self.num_images % _HALVES, 1 / values.shape[1]
        mean = values.mean(1)
        centered = (values - mean[:, None]) * share
        cells = _cell_of_each_token(maps.shape[1], maps.shape[2], self._cells)
        shares = torch.full_like(values[0], share)
        self._mean[half] += mean
        self._square[half] += values.square().mean(1)
        self._squared_mean[half] += mean.square()
        self._weight[half].index_add_(0, cells, shares)
        self._total[half].index_add_(1, cells, values * share)
        self._centered[half].index_add_(1, cells, centered)
        if clusters is not None:
            cluster = clusters.flatten().cpu().long()
            self._by_cluster[half].index_add_(1, cluster, centered)
            self._table[half].view(-1).index_add_(0, cluster * self._weight.shape[1] + cells, shares)
        self.num_images += 1

    @plain_torch()
    def where(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share of the variance that position explains, Var_p(mean_i x) / Var(x).

        Returns:
            One value from 0 to 1 per eigenvector.
        """
        weight = self._weight.sum(0)
        used = weight > 0
        offsets = self._total.sum(0)[:, used] / weight[used] - self._overall_mean()[:, None]
        return self._share((offsets**2 * weight[used]).sum(1) / self.num_images)

    @plain_torch()
    def image(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share of the variance that the image explains, Var_i(mean_p x) / Var(x).

        Returns:
            One value from 0 to 1 per eigenvector.
        """
        return self._share(self._squared_mean.sum(0) / self.num_images - self._overall_mean() ** 2)

    @plain_torch()
    def what(self) -> Float[Tensor, " eigenvectors"]:
        """Return the share of the variance that the clusters explain beyond position and image, see `what_score`.

        Returns:
            One value from 0 to 1 per eigenvector.

        Raises:
            SpectralError: If fewer than four images were added, or without clusters.
        """
        _require_clusters(self._num_segments > 0)
        _require_images(self.num_images, 2 * _HALVES)
        (means, weights), (others, other_weights) = map(self._cluster_means, range(_HALVES))
        # A cluster that occurs in one half only cannot be tested.
        shared = (weights > 0) & (other_weights > 0)
        explained = (means * others * ((weights + other_weights) * shared)).sum(1) / self.num_images
        return self._share(explained)

    def _cluster_means(self, half: int) -> tuple[Float[Tensor, "eigenvectors clusters"], Float[Tensor, " clusters"]]:
        """Return the mean residual of each cluster in one half, after image and position effects, and its weight."""
        position = self._centered[half] / self._weight[half].clamp_min(_TINY)
        weights = self._table[half].sum(1)
        rest = self._by_cluster[half] - position @ self._table[half].T
        # The mean of a position over n images contains 1 / n of each image's own value, as in a sample variance.
        num_images = (self.num_images + 1 - half) // _HALVES
        return num_images / (num_images - 1) * rest / weights.clamp_min(_TINY), weights

    def _overall_mean(self) -> Float[Tensor, " eigenvectors"]:
        return self._mean.sum(0) / self.num_images

    def _share(self, explained: Float[Tensor, " eigenvectors"]) -> Float[Tensor, " eigenvectors"]:
        square = self._square.sum(0) / self.num_images
        return _share(explained, square - self._overall_mean() ** 2, square)


def _share(
    explained: Float[Tensor, " eigenvectors"],
    variance: Float[Tensor, " eigenvectors"],
    square: Float[Tensor, " eigenvectors"],
) -> Float[Tensor, " eigenvectors"]:
    """Return which share of a variance is explained; 0 where the variance is rounding error of the mean square."""
    return torch.where(variance <= _CONSTANT * square, 0.0, explained / variance.clamp_min(_TINY)).clamp(0, 1)


def _cell_of_each_token(height: int, width: int, cells: tuple[int, int]) -> Integer[Tensor, " nodes"]:
    """Return the cell that contains the center of each token, in raster order."""
    row = ((torch.arange(height, dtype=torch.float32) + 0.5) * cells[0] / height).floor().long()
    column = ((torch.arange(width, dtype=torch.float32) + 0.5) * cells[1] / width).floor().long()
    return (row[:, None] * cells[1] + column).flatten()


def _images(eigenvectors: Iterable[Tensor], least: int) -> list[Tensor]:
    maps = list(eigenvectors)
    _require_images(len(maps), least)
    return maps


def _require_images(count: int, least: int) -> None:
    if count < least:
        raise SpectralError(
            "eigenvectors",
            expected=f"maps of at least {least} images",
            got=count,
            fix="Score a dataset with more images",
        )


def _require_clusters(holds: bool) -> None:
    if not holds:
        raise SpectralError(
            "clusters",
            expected="the clusters of every image, beside their number `num_segments`",
            got="one without the other",
            fix="Give VarianceShares(cells, num_segments) and add(maps, clusters), or leave both out",
        )


@plain_torch()
def surrounding_clusters(
    eigenvectors: Sequence[Float[Tensor, "eigenvectors _h _w"]],
    cells: tuple[int, int],
    num_segments: int = 20,
    seed: int = 0,
) -> list[Int[Tensor, "_h _w"]]:
    """Cluster the tokens of all images by the values of their neighbors, without using the token's own value.

    The features of a token are the mean over its (up to eight) neighbors, after subtracting the mean of its image and
    the mean of its position; k-means clusters these features. Clusters of a token's own values would explain a part of
    any values, including noise. Its neighbors predict only what the token shares with them, for example the object.

    Args:
        eigenvectors: Eigenvectors of each image, of shape (eigenvectors, height, width).
        cells: Number of rows and columns of cells into which positions are binned.
        num_segments: Maximum number of clusters.
        seed: Random seed of k-means.

    Returns:
        One map per image with the cluster index of each token.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import surrounding_clusters
        >>> clusters = surrounding_clusters([torch.rand(3, 8, 8), torch.rand(3, 6, 9)], cells=(4, 4), num_segments=5)
        >>> [tuple(one.shape) for one in clusters]
        [(8, 8), (6, 9)]
    """
    num_segments, seed = require_positive_int("num_segments", num_segments), require_seed(seed)
    shares = VarianceShares(cells)
    for one in eigenvectors:
        shares.add(one)
    position = shares._centered.sum(0) / shares._weight.sum(0).clamp_min(_TINY)
    features = []
    for one in eigenvectors:
        maps = one.detach().to("cpu", torch.float64)
        at_positions = position[:, _cell_of_each_token(maps.shape[1], maps.shape[2], cells)].view_as(maps)
        features.append(surroundings(maps - maps.mean((1, 2), keepdim=True) - at_positions).flatten(1).T)
    rows = torch.cat(features).float().numpy()
    sample = rows[np.random.default_rng(seed).permutation(len(rows))[:_FITTED_TOKENS]]
    # Constant maps have fewer distinct rows than clusters were requested.
    count = min(num_segments, len(np.unique(sample, axis=0)))
    labels = KMeans(count, n_init=2, random_state=seed).fit(sample).predict(rows)
    parts = torch.from_numpy(labels).long().split([len(one) for one in features])
    return [part.view(one.shape[1:]) for part, one in zip(parts, eigenvectors, strict=True)]


@plain_torch()
def surroundings(maps: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels height width"]:
    """Return the mean over the neighbors of each token, including diagonal ones, excluding the token itself.

    Args:
        maps: Values of one image.

    Returns:
        Maps of the same shape; 0 for a token without neighbors.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import surroundings
        >>> surroundings(torch.tensor([[[1.0, 2.0, 4.0]]])).tolist()
        [[[2.0, 2.5, 2.0]]]
    """
    sums = 9 * avg_pool2d(maps, 3, stride=1, padding=1) - maps
    count = 9 * avg_pool2d(torch.ones_like(maps[:1]), 3, stride=1, padding=1) - 1
    return sums / count.clamp_min(1)


@plain_torch()
def layout_score(
    eigenvectors: Float[Tensor, "eigenvectors height width"], order: int = 3
) -> Float[Tensor, " eigenvectors"]:
    """Return the share of each eigenvector's variance within one image that a smooth function of position explains.

    The score is R^2 of the trend surface, the least-squares polynomial in row and column of total degree `order`. It
    replaces `where_score` if there is only one image. `where_score` tests whether other images have the same map;
    `layout_score` tests whether the map varies gradually, so an object that fills half of the image also scores high.

    Args:
        eigenvectors: Eigenvectors of one image.
        order: Total degree of the polynomial, at least 1. The default 3 gives 10 terms.

    Returns:
        One score per eigenvector, from 0 (no trend, or constant) to 1 (a polynomial of position). With the default
        order, a map of noise scores about 9 / number of tokens.

    Raises:
        SpectralError: If `order` is not a positive integer.

    Reference:
        Trend surface analysis: Krumbein, J. Geophys. Res. 1959; Chorley and Haggett, Trans. Inst. Brit. Geogr. 1965.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import layout_score
        >>> gradient = torch.linspace(-1, 1, 20).expand(1, 15, 20)
        >>> round(float(layout_score(gradient)), 3)
        1.0
    """
    order = require_positive_int("order", order)
    count, height, width = eigenvectors.shape
    # A single row or column lies in the middle, at 0.
    down, across = (torch.linspace(-1, 1, n, dtype=torch.float64) * (n > 1) for n in (height, width))
    terms = [
        (down[:, None] ** row * across[None, :] ** column).flatten()
        for row in range(order + 1)
        for column in range(order + 1 - row)
    ]
    values = eigenvectors.detach().cpu().double().reshape(count, -1).T
    centered = values - values.mean(0)
    # The SVD also works on grids with fewer rows than terms, where the columns are linearly dependent.
    basis, strengths, _ = torch.linalg.svd(torch.stack(terms, dim=1), full_matrices=False)
    basis = basis[:, strengths > 1e-10 * strengths[0]]
    explained = (basis.T @ centered).square().sum(0)
    return _share(explained, centered.square().sum(0), values.square().sum(0)).float()
