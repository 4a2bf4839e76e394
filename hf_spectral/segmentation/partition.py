"""Segments of one image, their number given or found automatically."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.cluster import ward_tree
from sklearn.feature_extraction.image import grid_to_graph
from sklearn.metrics import silhouette_score
from torch import Tensor

from hf_spectral.checks import is_int, require_number, require_one_of, require_positive_int
from hf_spectral.errors import SpectralError
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation.embedding import centroids, embedded, kmeans
from hf_spectral.segmentation.region_tree import NUM_ATOMS, as_picture, region_tree
from hf_spectral.segmentation.segments import Segmentation, margins
from hf_spectral.segmentation.upsampling import checked_size, upsample
from hf_spectral.torch_state import plain_torch

SegmentationMethod = Literal["tree", "ward", "kmeans"]

# Where the number of segments is automatic, no merge of at least this cost is made.
# Chosen on one half of the validation images of BSDS500 at a time, these hold on the other half.
_THRESHOLDS = {"tree": 0.065, "ward": 0.25, "kmeans": 0}
_REACH = 2  # tokens around a segment that soft upsampling may give it; measured: 1 to 4 are equal, unbounded is worse
_SILHOUETTE_NODES = 2_000  # the silhouette is quadratic in the nodes: a fixed sample decides for larger grids


@plain_torch()
def segment(
    result: SpectralResult | Float[Tensor, "eigenvectors height width"],
    eigenvalues: Float[Tensor, " eigenvectors"] | None = None,
    *,
    image: Image.Image | ArrayLike | None = None,
    num_segments: int | Literal["auto"] = "auto",
    method: SegmentationMethod | None = None,
    size: tuple[int, int] | None = None,
    seed: int | None = None,
    threshold: float | None = None,
    max_auto_segments: int = 25,
) -> Segmentation:
    """Cut one image into segments.

    `tree` merges superpixels of the picture along its own edges (`region_tree`), and gives every other number of
    segments too (`Segmentation.at`). `ward` merges neighboring tokens so that the variance inside segments grows least
    (Ward 1963). The segments of both are connected. `kmeans` groups tokens by value alone, as the paper does.

    Example:
        >>> found = hf_spectral.segment(result, image=PIL.Image.open("photo.jpg"))
        >>> found.labels, found.at(8).labels

    Args:
        result: What a solver or a pipeline returns for one image; or its eigenvectors alone, of shape (eigenvectors,
            height, width), the trivial one at index 0.
        eigenvalues: Beside eigenvectors alone, those of the normalized Laplacian, ascending, from 0 to 2.
        image: The picture that the eigenvectors belong to, of any size: a PIL image, or an array of bytes of shape
            (height, width, 3).
        num_segments: How many, 1 to the number of tokens. `"auto"`: with `tree` and `ward`, merging stops where the
            next merge costs more than `threshold`; with `kmeans`, 2 to 10, whichever has the highest silhouette.
        method: `"tree"`, which needs the image, `"ward"` or `"kmeans"`; None takes `"tree"` if there is an image and
            else `"ward"`.
        size: Height and width of the labels in pixels; None takes those of the image, or of the token grid without one.
        seed: Seed of k-means, 0 to 2**32 - 1; None takes that of the result, or 0.
        threshold: Merges of at least this cost are not made; at least 0. For `tree` see `Segmentation.at`, 0.065 by
            default; for `ward` a Ward distance in units of the embedding's Frobenius norm, 0.25 by default.
        max_auto_segments: Upper bound of the automatic number for `tree` and `ward`.

    Returns:
        The segments. There are fewer than asked for where tokens are identical, or the picture or `size` is too small.

    Raises:
        SpectralError: If an argument is out of range.
    """
    embedding, grid, seed = embedded(result, eigenvalues, seed)
    picture = None if image is None else as_picture(image)
    method = method or ("ward" if picture is None else "tree")
    require_one_of("method", method, get_args(SegmentationMethod))
    count = _checked_count(num_segments, len(embedding))
    limit = require_positive_int("max_auto_segments", max_auto_segments)
    threshold = require_number("threshold", _THRESHOLDS[method] if threshold is None else threshold, 0, math.inf)
    size = checked_size(size, grid if picture is None else (picture.height, picture.width))
    if method == "tree":
        if picture is None:
            raise SpectralError(
                "image",
                expected="the picture, along whose edges method='tree' cuts",
                got="none",
                fix="Pass image=..., or method='ward'",
            )
        tree = region_tree(embedding, grid, picture, max(NUM_ATOMS, 2 * (count or 0)))
        count = min(count or min(tree.count(threshold), limit), len(tree.features))
        return Segmentation(count, size, tree)
    if method == "ward":
        nodes = _ward_labels(embedding, grid, count, threshold, limit)
    else:
        nodes = _kmeans_labels(embedding, count, seed)
    distances = cdist(embedding, centroids(embedding, nodes))
    scores = margins(distances, nodes, _touching(nodes, grid) if method == "ward" else None)
    if method == "ward":
        # Far regions that look alike have nearly the same centroid: each may claim only its own tokens and a rim.
        distances[~_reach(nodes, grid, _REACH)] = 2 * distances.max() + 1
    maps = torch.from_numpy(distances.T.reshape(-1, *grid)).float()
    return _by_area(upsample(maps, size), torch.from_numpy(scores).float())


def _ward_labels(
    embedding: np.ndarray, grid: tuple[int, int], num_segments: int | None, threshold: float, limit: int
) -> np.ndarray:
    """Return the labels after a cut through the one tree of merges between neighboring tokens."""
    count = len(embedding)
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    children, _, _, _, costs = ward_tree(embedding, connectivity=grid_to_graph(*grid), return_distance=True)
    # The epsilon keeps rounding noise of identical tokens below the threshold.
    bound = threshold * np.linalg.norm(embedding) + np.finfo(np.float32).eps
    made = count - (num_segments or min(int(np.count_nonzero(costs >= bound)) + 1, limit, count))
    merged = np.repeat(np.arange(count, count + made), 2)
    edges = coo_matrix((np.ones(2 * made), (children[:made].ravel(), merged)), shape=(count + made, count + made))
    labels = connected_components(edges, directed=False)[1][:count].astype(np.int64)
    return labels if num_segments else _absorb_crumbs(embedding, labels, grid)


def _kmeans_labels(embedding: np.ndarray, num_segments: int | None, seed: int) -> np.ndarray:
    distinct = len(np.unique(embedding, axis=0))
    if num_segments:
        return kmeans(embedding, min(num_segments, distinct), seed)
    candidates = [kmeans(embedding, k, seed) for k in range(2, min(10, distinct, len(embedding) - 1) + 1)]
    if not candidates:
        return np.zeros(len(embedding), dtype=np.int64)
    sample = np.random.default_rng(seed).permutation(len(embedding))[:_SILHOUETTE_NODES]
    return max(candidates, key=lambda labels: _silhouette(embedding[sample], labels[sample]))


def _silhouette(embedding: np.ndarray, labels: np.ndarray) -> float:
    found = len(np.unique(labels))
    return float(silhouette_score(embedding, labels)) if 2 <= found < len(labels) else -1.0


def _reach(labels: np.ndarray, grid: tuple[int, int], distance: int) -> np.ndarray:
    """Return for each token and segment whether the segment has a token within `distance` rows and columns."""
    member = np.arange(labels.max() + 1)[:, None, None] == labels.reshape(grid)
    square = np.ones((1, 3, 3), dtype=bool)
    return ndimage.binary_dilation(member, square, iterations=distance).reshape(len(member), -1).T


def _absorb_crumbs(embedding: np.ndarray, labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Merge segments below a thousandth of the area, which are outlier tokens, into the most similar neighbor."""
    small = np.bincount(labels) < len(labels) // 1000
    if not small.any() or small.all():
        return labels
    distances = cdist(embedding, centroids(embedding, labels))
    distances[~_reach(labels, grid, 1)] += 2 * distances.max() + 1  # not touching: only if nothing else does
    distances[:, small] = np.inf
    kept = np.where(small[labels], distances.argmin(1), labels)
    return np.unique(kept, return_inverse=True)[1]


def _touching(labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return for each two segments whether a token of one lies beside a token of the other."""
    near = _reach(labels, grid, 1)
    touching = np.zeros((near.shape[1], near.shape[1]), dtype=bool)
    tokens, segments = np.nonzero(near)
    touching[labels[tokens], segments] = True
    return touching


def _by_area(labels: Int[Tensor, "height width"], scores: Float[Tensor, " segments"]) -> Segmentation:
    areas = torch.bincount(labels.flatten(), minlength=len(scores))
    order = torch.argsort(areas, descending=True, stable=True)[: int((areas > 0).sum())]
    number = torch.zeros_like(areas)
    number[order] = torch.arange(len(order))
    height, width = labels.shape
    return Segmentation(len(order), (height, width), given=(number[labels], scores[order]))


def _checked_count(num_segments: int | str, num_nodes: int) -> int | None:
    """Return the number of segments, None for an automatic one."""
    if num_segments == "auto":
        return None
    if not is_int(num_segments) or not 1 <= num_segments <= num_nodes:
        raise SpectralError(
            "num_segments",
            expected=f"'auto' or an integer from 1 to the number of tokens, {num_nodes}",
            got=repr(num_segments),
            fix="Ask for fewer segments or give a larger image",
        )
    return int(num_segments)
