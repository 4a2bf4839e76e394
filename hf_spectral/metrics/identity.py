"""Clusters of tokens by identity that can be scored against the same eigenvectors that they were inferred from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hf_spectral.checks import require_positive_int, require_seed
from hf_spectral.metrics.variance import position_cells
from hf_spectral.torch_state import plain_torch

# k-means is fitted on at most this many tokens; the others are assigned to the nearest centroid.
_FITTED_TOKENS = 50_000


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
    labels = _clustered(torch.cat(rows).float().numpy(), num_segments, seed)
    parts = torch.from_numpy(labels).long().split([len(row) for row in rows])
    return [part.view(one.shape[1:]) for part, one in zip(parts, centered, strict=True)]


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


def _clustered(rows: np.ndarray, num_segments: int, seed: int) -> np.ndarray:
    sample = np.random.default_rng(seed).permutation(len(rows))[:_FITTED_TOKENS]
    # Constant maps have fewer distinct rows than clusters were requested.
    count = min(num_segments, len(np.unique(rows[sample], axis=0)))
    return KMeans(count, n_init=2, random_state=seed).fit(rows[sample]).predict(rows)
