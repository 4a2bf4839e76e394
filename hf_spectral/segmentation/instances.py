"""Candidate objects: regions of the picture's tree, or the paper's hierarchical grouping of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.spatial.distance import cdist
from skimage.measure import label
from sklearn.cluster import linkage_tree
from sklearn.feature_extraction.image import grid_to_graph
from torch import Tensor

from hf_spectral.checks import require_positive_int
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation.embedding import centroids, embedded, kmeans
from hf_spectral.segmentation.region_tree import RegionTree, as_picture, enlarged, region_tree
from hf_spectral.segmentation.upsampling import checked_size, upsample
from hf_spectral.torch_state import plain_torch

_BLOCK_VALUES = 4_000_000  # distances held at once: 32 MB


@dataclasses.dataclass(frozen=True)
class Instance:
    """One candidate object.

    Args:
        mask: True on its pixels.
        score: How much the tokens just outside differ from those inside: mean silhouette, 0 (not at all) to 1.
    """

    mask: Bool[Tensor, "height width"]
    score: float


@plain_torch()
def instances(
    result: SpectralResult | Float[Tensor, "eigenvectors height width"],
    eigenvalues: Float[Tensor, " eigenvectors"] | None = None,
    *,
    image: Image.Image | ArrayLike | None = None,
    size: tuple[int, int] | None = None,
    seed: int | None = None,
    max_instances: int = 20,
) -> list[Instance]:
    """Propose objects: regions of 1 to 90 % of the area that stand out.

    With the picture, the candidates are the regions of its tree (`segment`), whose masks follow its edges. Without,
    they come from the paper's hierarchical grouping of tokens: k-means for K = 2 to 9, the connected components of each
    merged, neighbors first, into a tree. Those that touch two or more borders of the picture are dropped as background
    (three or more, if none is left), the rest is ranked by silhouette and thinned out at an IoU of 0.7.

    Example:
        >>> best = hf_spectral.instances(result, image=PIL.Image.open("photo.jpg"))[0]
        >>> best.mask, best.score

    Args:
        result: What a solver or a pipeline returns for one image; or its eigenvectors alone, of shape (eigenvectors,
            height, width), the trivial one at index 0.
        eigenvalues: Beside eigenvectors alone, those of the normalized Laplacian, ascending, from 0 to 2.
        image: The picture, of any size: a PIL image, or an array of bytes of shape (height, width, 3).
        size: Height and width of the masks in pixels; None takes those of the image, or of the token grid without one.
        seed: Seed of k-means, 0 to 2**32 - 1; None takes that of the result, or 0.
        max_instances: Maximum number of candidates that are returned.

    Returns:
        Masks that may overlap, best first; empty where no region qualifies.

    Raises:
        SpectralError: If an argument is out of range.

    Reference:
        Zhang, Yunis, Maire, Deciphering What and Where Visual Pathways, CVPR 2024, instance segmentation.
    """
    max_instances = require_positive_int("max_instances", max_instances)
    embedding, grid, seed = embedded(result, eigenvalues, seed)
    picture = None if image is None else as_picture(image)
    size = checked_size(size, grid if picture is None else (picture.height, picture.width))
    if picture is None:
        masks = _candidates(embedding, grid, seed)
        chosen = _best(embedding, masks, grid, max_instances)
        inside = [torch.from_numpy(masks[index].reshape(grid)).float() for index, _ in chosen]
        pixels = [upsample(torch.stack([one, 1 - one]), size).bool() for one in inside]
    else:
        tree = region_tree(embedding, grid, picture)
        regions, masks = _regions(tree, grid)
        chosen = _best(embedding, masks, grid, max_instances)
        atoms = torch.from_numpy(enlarged(tree.atoms, size))
        ranges = [regions[index].tolist() for index, _ in chosen]
        pixels = [(atoms >= first) & (atoms < end) for first, end in ranges]
    return [Instance(mask, score) for mask, (_, score) in zip(pixels, chosen, strict=True)]


def _best(
    embedding: np.ndarray, masks: np.ndarray, grid: tuple[int, int], max_instances: int
) -> list[tuple[int, float]]:
    """Return number and score of the masks that stand out most, without background and near copies."""
    maps = masks.reshape(-1, *grid)
    borders = (maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1])
    touched = sum((border.any(1).astype(int) for border in borders), start=np.zeros(len(masks), dtype=int))
    kept = np.flatnonzero(touched < (2 if (touched < 2).any() else 3))
    scores = _mask_silhouettes(embedding, masks[kept], grid)
    chosen: list[tuple[int, float]] = []
    for place in np.argsort(-scores, kind="stable"):
        one = int(kept[place])
        if len(chosen) < max_instances and (_iou(masks[one], masks[[index for index, _ in chosen]]) <= 0.7).all():
            chosen.append((one, float(scores[place])))
    return chosen


def _regions(tree: RegionTree, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the regions of 1 to 90 % of the area as ranges of superpixels, and the tokens of which each has half."""
    (height, width), (rows, columns) = tree.atoms.shape, grid
    token = (np.arange(height) * rows // height)[:, None] * columns + np.arange(width) * columns // width
    count = rows * columns
    shares = np.bincount((tree.atoms * count + token).ravel(), minlength=len(tree.features) * count)
    sums = np.zeros((len(tree.features) + 1, count), dtype=np.int64)
    np.cumsum(shares.reshape(-1, count), axis=0, out=sums[1:])
    regions = tree.regions()
    inside = sums[regions[:, 1]] - sums[regions[:, 0]]
    area, masks = inside.sum(1), (2 * inside >= sums[-1]) & (inside > 0)
    is_kept = (area >= 0.01 * height * width) & (area <= 0.9 * height * width) & masks.any(1)
    return regions[is_kept], masks[is_kept]


def _candidates(embedding: np.ndarray, grid: tuple[int, int], seed: int) -> np.ndarray:
    """Return the distinct regions of 1 to 90 % of the area as rows of a boolean matrix."""
    count = len(embedding)
    found: dict[bytes, np.ndarray] = {}
    for k in range(2, min(9, len(np.unique(embedding, axis=0))) + 1):
        regions = _components(kmeans(embedding, k, seed).reshape(grid))
        masks = [regions == index for index in range(regions.max() + 1)]
        for first, second in _merging_tree(embedding, regions, grid):
            masks.append(masks[first] | masks[second])
        for mask in masks:
            if 0.01 * count <= mask.sum() <= 0.9 * count:
                found.setdefault(np.packbits(mask).tobytes(), mask)
    return np.array(list(found.values()), dtype=bool).reshape(-1, count)


def _components(labels: np.ndarray) -> np.ndarray:
    """Return the number of each token's region, a connected part of a segment; they are numbered segment by segment."""
    parts = label(labels, background=-1, connectivity=1).ravel() - 1
    segment = labels.ravel()[np.unique(parts, return_index=True)[1]]
    return np.argsort(np.argsort(segment, kind="stable"))[parts]


def _merging_tree(embedding: np.ndarray, regions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    count = int(regions.max()) + 1
    if count == 1:
        return np.zeros((0, 2), dtype=np.int64)
    edges = grid_to_graph(*grid).tocoo()
    shape = (count, count)
    adjacency = coo_matrix((np.ones(edges.nnz), (regions[edges.row], regions[edges.col])), shape=shape).tocsr()
    return linkage_tree(centroids(embedding, regions), connectivity=adjacency, linkage="average")[0]


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
    step = max(1, _BLOCK_VALUES // len(embedding))
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
