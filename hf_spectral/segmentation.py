"""From the eigenvectors of one image to labels, to a number of segments and to instances."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, linkage_tree, ward_tree
from sklearn.feature_extraction.image import grid_to_graph
from sklearn.metrics import silhouette_score
from torch import Tensor

from hf_spectral.config import require_positive_int
from hf_spectral.errors import SpectralError

SegmentationMethod = Literal["ward", "kmeans"]

_STRIP_VALUES = 4_000_000  # interpolated distances held at once: 16 MB
_REACH = 2  # tokens around a segment that soft upsampling may give it; measured: 1 to 4 are equal, unbounded is worse
_SILHOUETTE_NODES = 2_000  # the silhouette is quadratic in the nodes: a fixed sample decides for larger grids
_KMEANS_STARTS = 4


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A partition of one image.

    Args:
        labels: Segment of each pixel, 0 to `num_segments` - 1, numbered by decreasing area; no number is missing.
        scores: One value a segment, 0 to 1: the mean over its tokens of 1 - a / b, a the distance to the segment's own
            centroid and b that to the nearest rival's (a touching segment for `ward`, any other for `kmeans`), not
            less than 0. 1: every token sits on its centroid; 0: tokens are as near to the rival, or (as for the
            silhouette) the segment is a single token. A sole segment has 1.
        num_segments: Number of segments.
    """

    labels: Int[Tensor, "height width"]
    scores: Float[Tensor, " segments"]
    num_segments: int


@dataclasses.dataclass(frozen=True)
class Instance:
    """One candidate object.

    Args:
        mask: True on its pixels.
        score: How much the tokens just outside differ from those inside: mean silhouette, 0 (not at all) to 1.
    """

    mask: Bool[Tensor, "height width"]
    score: float


def spectral_embedding(
    eigenvectors: Float[Tensor, "eigenvectors height width"], eigenvalues: Float[Tensor, " eigenvectors"]
) -> Float[Tensor, "nodes channels"]:
    """Give each token its coordinates x_j = (1 - lambda_j) u_j, the trivial eigenvector left out.

    The scale is the token's share in the normalized affinity that eigenvector j explains; without it the last, noisy
    eigenvectors weigh as much as the first.

    Args:
        eigenvectors: Maps of one image, the trivial one at index 0, at least two.
        eigenvalues: Of the normalized Laplacian, ascending, 0 to 2; scales below 0 count as 0.

    Returns:
        One row a token in raster order, one column less than there are eigenvectors.

    Raises:
        SpectralError: If there is only one eigenvector, the numbers do not match, or a value is not finite.
    """
    if len(eigenvectors) != len(eigenvalues):
        raise SpectralError.of(
            "eigenvalues",
            expected=f"one for each of {len(eigenvectors)} eigenvectors",
            got=len(eigenvalues),
            fix="Pass both as one result gave them",
        )
    if len(eigenvectors) < 2:
        raise SpectralError.of(
            "num_eigenvectors",
            expected="at least 2, since the one at index 0 is trivial",
            got=len(eigenvectors),
            fix="Solve with num_eigenvectors=16",
        )
    if not (torch.isfinite(eigenvectors).all() and torch.isfinite(eigenvalues).all()):
        raise SpectralError.of(
            "eigenvectors", expected="finite values", got="NaN or infinity", fix="Look at the result's status"
        )
    scales = (1 - eigenvalues[1:]).clamp_min(0).to(eigenvectors)
    return eigenvectors[1:].flatten(1).T * scales


def segment(
    eigenvectors: Float[Tensor, "eigenvectors height width"],
    eigenvalues: Float[Tensor, " eigenvectors"],
    num_segments: int | Literal["auto"] = "auto",
    method: SegmentationMethod = "ward",
    size: tuple[int, int] | None = None,
    seed: int = 0,
    ward_threshold: float = 0.25,
    max_auto_segments: int = 20,
) -> Segmentation:
    """Cut one image into segments.

    `ward` merges neighbouring tokens so that the variance inside segments grows least (Ward 1963), hence its segments
    are connected on the token grid. `kmeans` groups tokens by value alone, as the paper does.

    Args:
        eigenvectors: Maps of one image, the trivial one at index 0.
        eigenvalues: Of the normalized Laplacian, ascending.
        num_segments: How many, 1 to the number of tokens. `"auto"`: with `ward`, merging stops where the next merge
            costs more than `ward_threshold`; with `kmeans`, 2 to 10, whichever has the highest silhouette.
        method: `"ward"` or `"kmeans"`.
        size: Height and width of the labels in pixels; `None` keeps the token grid.
        seed: Seed of k-means.
        ward_threshold: Cost of a merge that is not made, as a Ward distance in units of the embedding's Frobenius norm.
        max_auto_segments: Upper bound of the automatic number for `ward`.

    Returns:
        The labels. There are fewer segments than asked for where tokens are identical or `size` is too small for one.

    Raises:
        SpectralError: If an argument is out of range.
    """
    grid = (eigenvectors.shape[1], eigenvectors.shape[2])
    embedding = spectral_embedding(eigenvectors, eigenvalues).detach().to("cpu", torch.float64).numpy()
    _check_settings(num_segments, method, len(embedding))
    require_positive_int("max_auto_segments", max_auto_segments)
    size = _checked_size(size, grid)
    if method == "ward":
        limit = min(max_auto_segments, len(embedding))
        nodes = _ward_labels(embedding, grid, num_segments, ward_threshold, limit)
        if num_segments == "auto":
            nodes = _absorb_crumbs(embedding, nodes, grid)
    else:
        nodes = _kmeans_labels(embedding, num_segments, seed)
    distances = cdist(embedding, _centroids(embedding, nodes))
    scores = _margins(distances, nodes, grid if method == "ward" else None)
    if method == "ward":
        # Far regions that look alike have nearly the same centroid: each may claim only its own tokens and a rim.
        distances[~_reach(nodes, grid, _REACH)] = 2 * distances.max() + 1
    maps = torch.from_numpy(distances.T.reshape(-1, *grid)).float()
    return _by_area(upsample(maps, size), torch.from_numpy(scores).float())


def upsample(
    distances: Float[Tensor, "segments height width"], size: tuple[int, int]
) -> Int[Tensor, "pixel_rows pixel_columns"]:
    """Label each pixel with the segment at the least distance, distances interpolated between the tokens.

    The boundary then falls where two interpolated distances cross, between the tokens, and not on the sides of
    patches. Equal to `argmin` over `torch.nn.functional.interpolate(..., mode="bilinear", align_corners=False)`, but
    strip by strip: the memory needed beyond the labels does not grow with the height of the picture.

    Args:
        distances: Distance of each token to each segment's centroid, finite.
        size: Height and width of the labels in pixels.

    Returns:
        Index of the nearest segment of each pixel; the first of equals.

    Raises:
        SpectralError: If `size` is not two positive integers.
    """
    count, rows, _ = distances.shape
    height, width = _checked_size(size, (1, 1))
    wide = torch.nn.functional.interpolate(distances[None], (rows, width), mode="bilinear", align_corners=False)[0]
    position = ((torch.arange(height, device=wide.device) + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)
    above = position.floor().long()
    below = (above + 1).clamp_max(rows - 1)
    share = (position - above).to(wide.dtype)[:, None]
    labels = torch.empty(height, width, dtype=torch.int64, device=wide.device)
    strip = max(1, _STRIP_VALUES // (4 * width))
    for start in range(0, height, strip):
        part = slice(start, start + strip)
        least, nearest = torch.lerp(wide[0, above[part]], wide[0, below[part]], share[part]), labels[part].zero_()
        for segment_index in range(1, count):  # a running minimum: 2 to 3 times as fast as argmin
            rival = torch.lerp(wide[segment_index, above[part]], wide[segment_index, below[part]], share[part])
            nearest.masked_fill_(rival < least, segment_index)
            torch.minimum(least, rival, out=least)
    return labels


def instances(
    eigenvectors: Float[Tensor, "eigenvectors height width"],
    eigenvalues: Float[Tensor, " eigenvectors"],
    size: tuple[int, int] | None = None,
    seed: int = 0,
    max_instances: int = 20,
) -> list[Instance]:
    """Propose objects by the paper's hierarchical grouping.

    k-means for K = 2 to 9; the connected components of each are merged, neighbours first, into a tree; every region
    of 1 to 90 % of the area is a candidate. Those that touch two or more borders of the picture are dropped as
    background (three or more, if none is left), the rest is ranked by silhouette and thinned out at an IoU of 0.7.

    Args:
        eigenvectors: Maps of one image, the trivial one at index 0.
        eigenvalues: Of the normalized Laplacian, ascending.
        size: Height and width of the masks in pixels; `None` keeps the token grid.
        seed: Seed of k-means.
        max_instances: At most so many are returned.

    Returns:
        Masks that may overlap, best first; empty where no region qualifies.

    Raises:
        SpectralError: If an argument is out of range.

    Reference:
        Zhang, Yunis, Maire, Deciphering What and Where Visual Pathways, CVPR 2024, instance segmentation.
    """
    require_positive_int("max_instances", max_instances)
    grid = (eigenvectors.shape[1], eigenvectors.shape[2])
    embedding = spectral_embedding(eigenvectors, eigenvalues).detach().to("cpu", torch.float64).numpy()
    size = _checked_size(size, grid)
    masks = _candidates(embedding, grid, seed)
    maps = masks.reshape(-1, *grid)
    borders = (maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1])
    touched = sum((border.any(1).astype(int) for border in borders), start=np.zeros(len(masks), dtype=int))
    masks = masks[touched < (2 if (touched < 2).any() else 3)]
    scores = _mask_silhouettes(embedding, masks, grid)
    chosen: list[int] = []
    for candidate in np.argsort(-scores, kind="stable"):
        if len(chosen) < max_instances and (_iou(masks[candidate], masks[chosen]) <= 0.7).all():
            chosen.append(int(candidate))
    found = []
    for index in chosen:
        inside = torch.from_numpy(masks[index].reshape(grid)).float()
        found.append(Instance(upsample(torch.stack([inside, 1 - inside]), size).bool(), float(scores[index])))
    return found


def _candidates(embedding: np.ndarray, grid: tuple[int, int], seed: int) -> np.ndarray:
    """Return the distinct regions of 1 to 90 % of the area as rows of a boolean matrix."""
    count = len(embedding)
    found: dict[bytes, np.ndarray] = {}
    for k in range(2, min(9, len(np.unique(embedding, axis=0))) + 1):
        regions = _components(_kmeans(embedding, k, seed).reshape(grid))
        members = _merging_tree(embedding, regions, grid)
        masks = [regions == index for index in range(regions.max() + 1)]
        for first, second in members:
            masks.append(masks[first] | masks[second])
        for mask in masks:
            if 0.01 * count <= mask.sum() <= 0.9 * count:
                found.setdefault(np.packbits(mask).tobytes(), mask)
    return np.array(list(found.values()), dtype=bool).reshape(-1, count)


def _components(labels: np.ndarray) -> np.ndarray:
    """Return the number of each token's region, a connected part of a segment, counted over all segments."""
    regions = np.zeros(labels.shape, dtype=np.int64)
    count = 0
    for index in range(labels.max() + 1):
        parts, number = ndimage.label(labels == index)
        regions[parts > 0] = parts[parts > 0] + count - 1
        count += number
    return regions.ravel()


def _merging_tree(embedding: np.ndarray, regions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    count = int(regions.max()) + 1
    if count == 1:
        return np.zeros((0, 2), dtype=np.int64)
    edges = grid_to_graph(*grid).tocoo()
    shape = (count, count)
    adjacency = coo_matrix((np.ones(edges.nnz), (regions[edges.row], regions[edges.col])), shape=shape).tocsr()
    return linkage_tree(_centroids(embedding, regions), connectivity=adjacency, linkage="average")[0]


def _mask_silhouettes(embedding: np.ndarray, masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the mean silhouette 1 - a / b over the tokens just outside each mask; at least 0.

    b is an outside token's mean distance to the mask's tokens, a the mean distance among these. So every part of the
    outline counts the same. The silhouette of the inside against the whole rest (or against the rim) is high already
    where a piece of uniform background touches one very different object.
    """
    maps = masks.reshape(-1, *grid)
    rim = ndimage.binary_dilation(maps, np.ones((1, 3, 3), dtype=bool)) & ~maps
    members, outside = masks.T.astype(np.float64), rim.reshape(masks.shape).T
    sizes = members.sum(0)
    to_mask = np.empty(members.shape)
    step = max(1, _STRIP_VALUES // len(embedding))
    for start in range(0, len(embedding), step):
        to_mask[start : start + step] = cdist(embedding[start : start + step], embedding) @ members
    within = (to_mask * members).sum(0) / np.maximum(sizes * (sizes - 1), 1)
    to_mask /= np.maximum(sizes, 1)
    largest = np.maximum(to_mask, within)
    margin = np.divide(to_mask - within, largest, out=np.zeros_like(to_mask), where=largest > 0)
    mean = (margin * outside).sum(0) / np.maximum(outside.sum(0), 1)
    return np.where(sizes > 1, mean, 0).clip(0, 1)


def _iou(mask: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (mask & others).sum(1) / np.maximum((mask | others).sum(1), 1)


def _ward_labels(
    embedding: np.ndarray, grid: tuple[int, int], num_segments: int | str, threshold: float, limit: int
) -> np.ndarray:
    """Return the labels after a cut through the one tree of merges between neighbouring tokens."""
    count = len(embedding)
    if count == 1:
        return np.zeros(1, dtype=np.int64)
    children, _, _, _, costs = ward_tree(embedding, connectivity=grid_to_graph(*grid), return_distance=True)
    if isinstance(num_segments, str):
        # The epsilon keeps rounding noise of identical tokens below the threshold.
        bound = threshold * np.linalg.norm(embedding) + np.finfo(np.float32).eps
        num_segments = int(np.clip(np.count_nonzero(costs >= bound) + 1, 1, limit))
    made = count - num_segments
    merged = np.repeat(np.arange(count, count + made), 2)
    edges = coo_matrix((np.ones(2 * made), (children[:made].ravel(), merged)), shape=(count + made, count + made))
    return connected_components(edges, directed=False)[1][:count].astype(np.int64)


def _kmeans_labels(embedding: np.ndarray, num_segments: int | str, seed: int) -> np.ndarray:
    distinct = len(np.unique(embedding, axis=0))
    if isinstance(num_segments, int):
        return _kmeans(embedding, min(num_segments, distinct), seed)
    candidates = [_kmeans(embedding, k, seed) for k in range(2, min(10, distinct, len(embedding) - 1) + 1)]
    if not candidates:
        return np.zeros(len(embedding), dtype=np.int64)
    sample = np.random.default_rng(seed).permutation(len(embedding))[:_SILHOUETTE_NODES]
    return max(candidates, key=lambda labels: _silhouette(embedding[sample], labels[sample]))


def _kmeans(embedding: np.ndarray, num_segments: int, seed: int) -> np.ndarray:
    fitted = KMeans(num_segments, n_init=_KMEANS_STARTS, random_state=seed).fit(embedding)
    return np.unique(fitted.labels_, return_inverse=True)[1].astype(np.int64)


def _silhouette(embedding: np.ndarray, labels: np.ndarray) -> float:
    found = len(np.unique(labels))
    return float(silhouette_score(embedding, labels)) if 2 <= found < len(labels) else -1.0


def _centroids(embedding: np.ndarray, labels: np.ndarray) -> np.ndarray:
    membership = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))))
    return (membership @ embedding) / np.bincount(labels)[:, None]


def _reach(labels: np.ndarray, grid: tuple[int, int], distance: int) -> np.ndarray:
    """Return for each token and segment whether the segment has a token within `distance` rows and columns."""
    member = np.arange(labels.max() + 1)[:, None, None] == labels.reshape(grid)
    square = np.ones((1, 3, 3), dtype=bool)
    return ndimage.binary_dilation(member, square, iterations=distance).reshape(len(member), -1).T


def _absorb_crumbs(embedding: np.ndarray, labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the labels with segments below a thousandth of the area, outlier tokens, given to the likest neighbour."""
    small = np.bincount(labels) < len(labels) // 1000
    if not small.any() or small.all():
        return labels
    distances = cdist(embedding, _centroids(embedding, labels))
    distances[~_reach(labels, grid, 1)] += 2 * distances.max() + 1  # not touching: only if nothing else does
    distances[:, small] = np.inf
    kept = np.where(small[labels], distances.argmin(1), labels)
    return np.unique(kept, return_inverse=True)[1]


def _margins(distances: np.ndarray, labels: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    count = distances.shape[1]
    if count == 1:
        return np.ones(1)
    own = distances[np.arange(len(labels)), labels]
    rivals = distances.copy()
    if grid is not None:
        touching = np.zeros((count, count), dtype=bool)
        tokens, segments = np.nonzero(_reach(labels, grid, 1))
        touching[labels[tokens], segments] = True
        rivals[~touching[labels]] = np.inf
    rivals[np.arange(len(labels)), labels] = np.inf
    nearest = rivals.min(1)
    margin = np.divide(nearest - own, np.maximum(nearest, own), out=np.zeros_like(own), where=nearest > 0)
    sizes = np.bincount(labels)
    return np.where(sizes > 1, np.bincount(labels, margin) / sizes, 0).clip(0, 1)


def _by_area(labels: Int[Tensor, "height width"], scores: Float[Tensor, " segments"]) -> Segmentation:
    areas = torch.bincount(labels.flatten(), minlength=len(scores))
    order = torch.argsort(areas, descending=True, stable=True)[: int((areas > 0).sum())]
    number = torch.zeros_like(areas)
    number[order] = torch.arange(len(order))
    return Segmentation(labels=number[labels], scores=scores[order], num_segments=len(order))


def _check_settings(num_segments: int | str, method: str, num_nodes: int) -> None:
    if method not in get_args(SegmentationMethod):
        raise SpectralError.of("method", expected="'ward' or 'kmeans'", got=repr(method), fix="Choose one of these")
    if num_segments == "auto":
        return
    is_count = isinstance(num_segments, int) and not isinstance(num_segments, bool)
    if not is_count or not 1 <= int(num_segments) <= num_nodes:
        raise SpectralError.of(
            "num_segments",
            expected=f"'auto' or an integer from 1 to the number of tokens, {num_nodes}",
            got=repr(num_segments),
            fix="Ask for fewer segments or give a larger image",
        )


def _checked_size(size: tuple[int, int] | None, default: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return default
    if len(size) != 2 or min(size) < 1:
        raise SpectralError.of(
            "size", expected="height and width, at least 1 pixel each", got=size, fix="Give (image.height, image.width)"
        )
    return int(size[0]), int(size[1])
