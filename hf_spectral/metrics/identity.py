"""Clusters of tokens by identity, made so that they may explain the very eigenvectors they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hf_spectral.metrics.variance import position_cells

# k-means sees so many tokens at most; the others get the nearest centroid.
_FITTED_TOKENS = 50_000


def surrounding_clusters(
    eigenvectors: Sequence[Float[Tensor, "eigenvectors _h _w"]],
    cells: tuple[int, int],
    num_clusters: int = 20,
    seed: int = 0,
) -> list[Int[Tensor, "_h _w"]]:
    """Cluster the tokens of all images by what surrounds them, the token itself left out.

    k-means of the mean of the up to eight neighbors of each token, after the means of its image and of its position
    are taken away. Clusters of the values themselves would explain a part of any values, noise among them; what the
    neighbors tell about a token it shares with them, as the parts of one object do.

    Args:
        eigenvectors: Maps of each image.
        cells: Rows and columns of the cells that stand for positions.
        num_clusters: Clusters at most.
        seed: Seed of k-means.

    Returns:
        Cluster of each token, a map an image.
    """
    centered = [one.detach().to("cpu", torch.float64) for one in eigenvectors]
    centered = [one - one.mean((1, 2), keepdim=True) for one in centered]
    indices = [position_cells(one.shape[1], one.shape[2], cells) for one in centered]
    total = torch.zeros(len(centered[0]), cells[0] * cells[1], dtype=torch.float64)
    weight = torch.zeros(cells[0] * cells[1], dtype=torch.float64)
    for one, index in zip(centered, indices, strict=True):
        weight += torch.bincount(index, minlength=len(weight)) / len(index)
        total.index_add_(1, index, one.flatten(1) / len(index))
    position = total / weight.clamp_min(torch.finfo(torch.float64).tiny)
    rows = [
        surroundings(one - position[:, index].view_as(one)).flatten(1).T
        for one, index in zip(centered, indices, strict=True)
    ]
    labels = _clustered(torch.cat(rows).float().numpy(), num_clusters, seed)
    parts = torch.from_numpy(labels).long().split([len(row) for row in rows])
    return [part.view(one.shape[1:]) for part, one in zip(parts, centered, strict=True)]


def surroundings(maps: Float[Tensor, "channels height width"]) -> Float[Tensor, "channels height width"]:
    """Return the mean of each token's neighbors, diagonal ones among them, the token itself left out.

    Args:
        maps: Values of one image.

    Returns:
        Maps of the same shape; 0 for a token that has no neighbor.
    """
    sums = 9 * avg_pool2d(maps, 3, stride=1, padding=1) - maps
    count = 9 * avg_pool2d(torch.ones_like(maps[:1]), 3, stride=1, padding=1) - 1
    return sums / count.clamp_min(1)


def _clustered(rows: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    sample = np.random.default_rng(seed).permutation(len(rows))[:_FITTED_TOKENS]
    # Of constant maps, fewer clusters exist than are asked for.
    count = min(num_clusters, len(np.unique(rows[sample], axis=0)))
    return KMeans(count, n_init=2, random_state=seed).fit(rows[sample]).predict(rows)
