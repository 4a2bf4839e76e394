"""Clusters that mean the same in every image of a dataset: unsupervised semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn.functional import normalize

from hf_spectral.checks import require_positive_int, require_seed
from hf_spectral.errors import SpectralError
from hf_spectral.segmentation.merging import merged_clusters
from hf_spectral.segmentation.upsampling import upsample
from hf_spectral.torch_state import plain_torch


@plain_torch()
def semantic_segmentation(
    eigenvectors: Sequence[Float[Tensor, "eigenvectors _h _w"]],
    num_segments: int,
    sizes: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
) -> list[Int[Tensor, "_rows _columns"]]:
    """Cluster the tokens of all images together, so that a label means the same in every image.

    k-means and merging (`merging.merged_clusters`) of the rows of the dataset-level eigenvectors, the trivial one left
    out, each row divided by its length (Ng, Jordan, Weiss, NIPS 2001): tokens of one direction are alike, however
    strongly they belong. Score the labels of all images, put into one array, with `metrics.matched_miou` and its kin.

    Args:
        eigenvectors: Maps of each image from one basis, the trivial one at index 0, at least two.
        num_segments: Clusters, at most the number of tokens that differ.
        sizes: Height and width in pixels of each image's labels, which are interpolated softly (`upsample`); None keeps
            the token grids.
        seed: Seed of k-means.

    Returns:
        Labels from 0, the largest cluster, one map per image.

    Raises:
        SpectralError: If there are no images, only the trivial eigenvector, values that are not finite, numbers that
            do not fit each other, or fewer differing tokens than clusters.
    """
    num_segments, seed = require_positive_int("num_segments", num_segments), require_seed(seed)
    maps = list(eigenvectors)
    _check(maps, sizes)
    rows = [normalize(one[1:].detach().cpu().double().flatten(1).T, dim=1).numpy() for one in maps]
    embedding = np.concatenate(rows)
    distinct = len(np.unique(embedding, axis=0))
    if distinct < num_segments:
        raise SpectralError(
            "num_segments",
            expected=f"at most the {distinct} tokens that differ",
            got=num_segments,
            fix="Ask for fewer clusters or give more images",
        )
    centers, cluster, labels = merged_clusters(embedding, num_segments, distinct, seed)
    parts = np.split(labels, np.cumsum([len(row) for row in rows])[:-1])
    if sizes is None:
        return [torch.from_numpy(part).view(one.shape[1:]) for part, one in zip(parts, maps, strict=True)]
    of_center = torch.from_numpy(cluster)
    return [
        of_center[upsample(torch.from_numpy(cdist(row, centers).T.reshape(-1, *one.shape[1:])).float(), size)]
        for row, one, size in zip(rows, maps, sizes, strict=True)
    ]


def _check(maps: list[Tensor], sizes: Sequence[tuple[int, int]] | None) -> None:
    if not maps or len({len(one) for one in maps}) > 1 or len(maps[0]) < 2:
        raise SpectralError(
            "eigenvectors",
            expected="maps of at least one image, all with the same number of eigenvectors, at least 2",
            got=f"{len(maps)} images with {sorted({len(one) for one in maps})} eigenvectors",
            fix="Pass what one basis projects, solved with num_eigenvectors=2 or more",
        )
    if not all(torch.isfinite(one).all() for one in maps):
        raise SpectralError(
            "eigenvectors", expected="finite values", got="NaN or infinity", fix="Look at the result's status"
        )
    if sizes is not None and len(sizes) != len(maps):
        raise SpectralError(
            "sizes", expected=f"one for each of {len(maps)} images", got=len(sizes), fix="Give (height, width) pairs"
        )
