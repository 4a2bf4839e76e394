"""Clusters that mean the same in every image of a dataset: unsupervised semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import AgglomerativeClustering, KMeans
from torch import Tensor
from torch.nn.functional import normalize

from hf_spectral.checks import require_positive_int, require_seed
from hf_spectral.clusters import Clusters, discriminant_rows, unit_rows
from hf_spectral.errors import SpectralError
from hf_spectral.segmentation.upsampling import upsample_clusters
from hf_spectral.torch_state import plain_torch

# Tokens that decide where the clusters are: more than enough for the mean of a cluster, seconds of k-means.
SAMPLE_TOKENS = 50_000
# Pseudo-clusters for each cluster asked for, and at most: the directions that tell them apart are fewer than those.
_PSEUDO_PER_CLUSTER, _MAX_PSEUDO = 4, 512
# Centers of k-means for each cluster asked for. k-means alone cuts a frequent class into several clusters of like size
# and throws rare ones together. On 197 labeled photographs (DINOv2-small, `tests/benchmarks/layer_weights.py`) merging
# centers raises NMI and matched mIoU.
_CENTERS_PER_CLUSTER = 2
# Starts of k-means for the pseudo-clusters and for the centers: with fewer, seeds differ more.
_PSEUDO_STARTS, _STARTS = 4, 8
# Eigenvectors that make the pseudo-clusters, and directions kept: the last eigenvectors are noisier than the first.
_LEADING = 63
# Eigenvectors that clusters take: so many, and so many more per image that the basis was fitted on.
_LEAST_EIGENVECTORS, _EIGENVECTORS_PER_IMAGE = 16, 0.8
# Added to the variance within pseudo-clusters: a share of its mean over all directions, and a least variance.
_RIDGE, _FLOOR = 0.01, 1e-8


@plain_torch()
def semantic_segmentation(
    eigenvectors: Sequence[Float[Tensor, "eigenvectors _h _w"]],
    num_segments: int,
    sizes: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
    num_fitted: int | None = None,
) -> list[Int[Tensor, "_rows _columns"]]:
    """Cluster the tokens of all images together, so that a label means the same in every image.

    `find_clusters` on a random sample of tokens, then `label_image` on each image, both with the first eigenvectors
    (`leading_eigenvectors`). Score the labels of all images, put into one array, with `metrics.matched_miou` and its
    kin.

    Args:
        eigenvectors: Maps of each image from one basis, the trivial one at index 0, at least two.
        num_segments: Clusters, at most the number of tokens that differ.
        sizes: Height and width in pixels of each image's labels, which are interpolated softly (`upsample`); None keeps
            the token grids.
        seed: Seed of the sample and of k-means.
        num_fitted: Images that the basis was fitted on, `basis.num_images`; None: those given.

    Returns:
        Labels from 0, the largest cluster, one map per image.

    Raises:
        SpectralError: If there are no images, only the trivial eigenvector, values that are not finite, numbers that
            do not fit each other, or fewer differing tokens than clusters.
    """
    num_segments, seed = require_positive_int("num_segments", num_segments), require_seed(seed)
    if num_fitted is not None:
        require_positive_int("num_fitted", num_fitted)
    maps = list(eigenvectors)
    _check(maps, sizes)
    chosen = sample_tokens([one[0].numel() for one in maps], seed)
    leading = leading_eigenvectors(num_fitted or len(maps))
    rows = [unit_rows(one[:leading])[torch.from_numpy(tokens)] for one, tokens in zip(maps, chosen, strict=True)]
    clusters = find_clusters(torch.cat(rows), num_segments, seed)
    if clusters.num_found < num_segments:
        raise SpectralError(
            "num_segments",
            expected=f"at most the {clusters.num_found} tokens that differ",
            got=num_segments,
            fix="Ask for fewer clusters or give more images",
        )
    of_pixels = [(one.shape[1], one.shape[2]) for one in maps] if sizes is None else sizes
    return [label_image(one, clusters, size)[0] for one, size in zip(maps, of_pixels, strict=True)]


def leading_eigenvectors(num_fitted: int) -> int:
    """Return how many eigenvectors of a basis the clusters of a dataset should take, the trivial one among them.

    Eigenvectors of a basis of many images tell classes apart that recur; the later ones of a basis of few images tell
    segments of single images apart, the more so after the walk inside images. On photographs of MSRC (DINOv2-small),
    NMI of the clusters is best with about 32 eigenvectors of a basis of 20 images, 48 of 40, 64 to 96 of 80 and 128 of
    197. How many images are clustered does not matter: 20 or 40 others, on a basis of 98, are served best by 64 to 94.

    Args:
        num_fitted: Images that the basis was fitted on.

    Returns:
        16, and 0.8 more per image.
    """
    return _LEAST_EIGENVECTORS + int(_EIGENVECTORS_PER_IMAGE * num_fitted)


def sample_tokens(num_tokens: Sequence[int], seed: int) -> list[Int[np.ndarray, " chosen"]]:
    """Choose tokens of a dataset at random, the same ones however the images are shared among processes.

    Args:
        num_tokens: Of each image, in the order of the dataset.
        seed: Seed of the choice.

    Returns:
        Chosen tokens of each image, ascending; all of them if there are few.
    """
    ends = np.cumsum(num_tokens)
    if ends[-1] <= SAMPLE_TOKENS:
        return [np.arange(count) for count in num_tokens]
    chosen = np.unique(np.random.default_rng(seed).integers(0, ends[-1], SAMPLE_TOKENS))
    images = np.searchsorted(ends, chosen, side="right")
    within = chosen - (ends - num_tokens)[images]
    return np.split(within, np.searchsorted(images, np.arange(1, len(num_tokens))))


@plain_torch()
def find_clusters(
    rows: Float[Tensor, "nodes channels"], num_segments: int, seed: int = 0, walk: float = 0.0
) -> Clusters:
    """Cluster tokens in the directions that tell pseudo-clusters apart, without labels.

    k-means finds several times as many pseudo-clusters as are asked for; the linear discriminants of these (Fisher
    1936; the within-cluster scatter with a ridge) are the directions in which tokens differ by what they are rather
    than by noise. In those directions k-means finds twice as many centers as clusters are asked for, and average
    linkage (Sokal and Michener 1958) by the cosine of the centers merges them. `tests/benchmarks/dataset.py` measures
    what the directions are worth.

    Args:
        rows: A sample of `clusters.unit_rows`.
        num_segments: Clusters; there are fewer where fewer rows differ.
        seed: Seed of k-means.
        walk: Strength of the walk that made the eigenvectors, which is kept with the clusters.

    Returns:
        The clusters.
    """
    # Rounding makes copies of a token differ in the last bits.
    distinct = len(np.unique(rows.numpy().round(4), axis=0))
    mean, directions = _discriminants(rows, min(_PSEUDO_PER_CLUSTER * num_segments, _MAX_PSEUDO, distinct), seed)
    told_apart = discriminant_rows(rows, mean, directions)
    found, count = min(num_segments, distinct), min(_CENTERS_PER_CLUSTER * num_segments, distinct)
    fitted = KMeans(count, n_init=_STARTS, random_state=seed).fit(told_apart.numpy())
    centers = torch.from_numpy(fitted.cluster_centers_).float()
    cluster = np.arange(count)
    if count > found:
        unit = normalize(centers.double(), dim=1)
        merging = AgglomerativeClustering(found, metric="precomputed", linkage="average")
        cluster = merging.fit_predict((1 - unit @ unit.T).clamp(0, 2).numpy())
    sizes = np.bincount(cluster[fitted.labels_], minlength=found)
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    return Clusters(mean, directions, centers, torch.from_numpy(rank[cluster]), num_segments, walk)


def _discriminants(
    rows: Float[Tensor, "nodes channels"], count: int, seed: int
) -> tuple[Float[Tensor, " channels"], Float[Tensor, "channels directions"]]:
    """Return the mean of the rows and the linear discriminants of `count` pseudo-clusters."""
    leading = normalize(rows[:, :_LEADING], dim=1)
    fitted = KMeans(count, n_init=_PSEUDO_STARTS, random_state=seed).fit(leading.numpy())
    labels = torch.from_numpy(fitted.labels_).long()
    mean = rows.double().mean(0)
    centered = rows.double() - mean
    sizes = torch.bincount(labels, minlength=count).clamp_min(1).double()
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64).index_add_(0, labels, centered)
    between = sums.T @ (sums / sizes[:, None])
    within = centered.T @ centered - between
    # The floor counts where every token is a cluster of its own.
    ridge = _RIDGE * within.diagonal().mean().clamp_min(0) + _FLOOR * len(rows)
    inverse = torch.linalg.inv(torch.linalg.cholesky(within + ridge * torch.eye(len(within), dtype=torch.float64)))
    _, vectors = torch.linalg.eigh(inverse @ between @ inverse.T)
    kept = max(1, min(_LEADING, count - 1, rows.shape[1]))
    # Scaled so that rows vary by about 1 within a pseudo-cluster.
    directions = len(rows) ** 0.5 * inverse.T @ vectors.flip(1)[:, :kept]
    return mean.float(), directions.float()


@plain_torch()
def label_image(
    eigenvectors: Float[Tensor, "eigenvectors _h _w"], clusters: Clusters, size: tuple[int, int]
) -> tuple[Int[Tensor, "_rows _columns"], Float[Tensor, "_rows _columns"], Float[Tensor, " _clusters"]]:
    """Label the pixels of one image with the clusters of a dataset, distances interpolated between tokens.

    Args:
        eigenvectors: Maps of the image from the basis that the clusters belong to, the trivial one at index 0.
        clusters: The clusters.
        size: Height and width of the labels in pixels.

    Returns:
        Cluster of each pixel. The confidence of each pixel, from 0 to 1: 1 - a / b, with a the distance to the nearest
        center of its cluster and b that to the nearest one of another; 0 where both are equal, 1 on a center or where
        there is one cluster. The score of each cluster: its mean confidence; 0 without pixels.
    """
    labels, confidence = upsample_clusters(clusters.distances(eigenvectors).contiguous(), clusters.cluster, size)
    pixels = torch.bincount(labels.flatten(), minlength=clusters.num_found)
    sums = torch.bincount(labels.flatten(), confidence.flatten().double(), minlength=clusters.num_found)
    return labels, confidence, (sums / pixels.clamp_min(1)).float()


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
