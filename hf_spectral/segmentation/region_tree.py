"""Regions along a picture's own edges, merged into one tree that can be cut at any number of segments."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import math

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import slic

from hf_spectral.errors import SpectralError
from hf_spectral.segmentation.embedding import centroids

NUM_ATOMS = 800
# Longer side in pixels at which superpixels are found: their cost grows with the pixels, their outlines hardly improve.
_WORKING_SIDE = 512
_PIXELS_PER_TOKEN = 4  # A picture that is smaller than its token grid is enlarged.
_SPACING = 0.2  # Weight of the distance between pixels in superpixels, in units of lightness (0 to 1) per superpixel.
_ITERATIONS = 5
# Half the distance in tokens over which the embedding's contrast is taken, and the change of color in two pixels (of a
# lightness from 0 to 1) at which the border counts one more.
_REACH = 0.57
_EDGE = 0.03
_FEW = 64  # Maps of up to this many segments are drawn from the runs of a map of this many, which has fewer of them.


@dataclasses.dataclass(frozen=True, eq=False)
class RegionTree:
    """Every number of segments of one picture, nested in each other.

    Args:
        atoms: Superpixel of each pixel of the picture at working size. They are numbered along the tree, so that every
            region of the tree is a range of numbers.
        heights: Cost of the merge that brings superpixels i and i + 1 into one region, at least 0, no two equal.
        features: Mean of the embedding over each superpixel, in units of the root mean square of its row norms.
    """

    atoms: Int[np.ndarray, "rows columns"]
    heights: Float[np.ndarray, " gaps"]
    features: Float[np.ndarray, "atoms channels"]

    @functools.cached_property
    def areas(self) -> Int[np.ndarray, " atoms"]:
        """Pixels of each superpixel."""
        return np.bincount(self.atoms.ravel(), minlength=len(self.features))

    @functools.cached_property
    def borders(self) -> Int[np.ndarray, "borders 2"]:
        """Pairs of superpixels that touch, the smaller number first."""
        return _pairs(self.atoms, _sides(self.atoms))[0]

    @functools.cached_property
    def _runs(self) -> dict[tuple[int, int, bool], tuple[Int[np.ndarray, " runs"], Int[np.ndarray, " runs"]]]:
        """Superpixel and length of each run of equal pixels of the maps drawn so far, by size and whether it is few."""
        return {}

    @functools.cached_property
    def _gaps(self) -> Int[np.ndarray, " gaps"]:
        return np.argsort(-self.heights, kind="stable")

    def count(self, threshold: float) -> int:
        """Return the number of segments if no merge of at least this cost is made.

        Args:
            threshold: A cost, at least 0.

        Returns:
            1 to the number of superpixels.
        """
        return 1 + int(np.count_nonzero(self.heights >= threshold))

    def cut(self, num_segments: int) -> Int[np.ndarray, " atoms"]:
        """Return the segment of each superpixel.

        Args:
            num_segments: 1 to the number of superpixels.

        Returns:
            Numbers from 0, the segment of the largest area.
        """
        starts = np.zeros(num_segments, dtype=np.int64)
        starts[1:] = np.sort(self._gaps[: num_segments - 1]) + 1
        order = np.argsort(-np.add.reduceat(self.areas, starts), kind="stable")
        number = np.empty(num_segments, dtype=np.int64)
        number[order] = np.arange(num_segments)
        return np.repeat(number, np.diff(starts, append=len(self.features)))

    def draw(self, num_segments: int, size: tuple[int, int]) -> Integer[np.ndarray, "height width"]:
        """Return the segment of each pixel.

        Args:
            num_segments: 1 to the number of superpixels.
            size: Height and width of the map in pixels.

        Returns:
            The numbers of `cut`, of the smallest type that holds them: the smaller, the faster.
        """
        is_few = num_segments <= _FEW
        if (key := (*size, is_few)) not in self._runs:
            atoms = enlarged(self.atoms, size).ravel()
            regions = self.cut(min(_FEW, len(self.features))).astype(np.uint8)[atoms] if is_few else atoms
            starts = np.append(0, np.flatnonzero(regions[1:] != regions[:-1]) + 1)
            self._runs[key] = atoms[starts], np.diff(starts, append=len(atoms))
        superpixels, lengths = self._runs[key]
        segments = self.cut(num_segments).astype(np.min_scalar_type(num_segments - 1))
        return np.repeat(segments[superpixels], lengths).reshape(size)

    def regions(self) -> Int[np.ndarray, "regions 2"]:
        """Return first and last superpixel + 1 of every region of the tree, single superpixels and the whole too."""
        start, end = np.arange(len(self.features)), np.arange(len(self.features)) + 1
        found = list(zip(start.tolist(), end.tolist(), strict=True))
        for gap in self._gaps[::-1]:
            low, high = start[gap], end[gap + 1]  # Of the regions so far, known at their two ends.
            end[low], start[high - 1] = high, low
            found.append((low, high))
        return np.array(found, dtype=np.int64)


def region_tree(
    embedding: Float[np.ndarray, "nodes channels"],
    grid: tuple[int, int],
    picture: Image.Image,
    num_atoms: int = NUM_ATOMS,
) -> RegionTree:
    """Merge superpixels of a picture, the most similar neighbors first.

    Superpixels are those of SLIC (Achanta et al., TPAMI 2012). A merge costs the growth of the variance inside regions
    (Ward 1963) times the mean contrast of the shared border: that of the embedding, interpolated between tokens, which
    an edge of the picture at the same place raises.

    Args:
        embedding: One row per token in raster order.
        grid: Rows and columns of tokens.
        picture: The picture, RGB, of any size.
        num_atoms: Superpixels to ask for; SLIC gives about as many.

    Returns:
        The tree.
    """
    lab = _lab(picture, grid)
    atoms = _superpixels(lab, num_atoms)
    scale = max(float(np.sqrt((embedding**2).sum(1).mean())), np.finfo(np.float32).tiny)
    maps = torch.from_numpy((embedding / scale).T.reshape(-1, *grid).astype(np.float32))
    wide = torch.nn.functional.interpolate(maps[None], atoms.shape, mode="bilinear", align_corners=False)[0].numpy()
    features = centroids(wide.reshape(len(wide), -1).T, atoms.ravel())
    areas = np.bincount(atoms.ravel()) / atoms.size
    order, heights = _merged(features, areas, *_border_contrasts(wide, lab, atoms, grid))
    return RegionTree(np.argsort(order).astype(np.int32)[atoms], heights, features[order].astype(np.float32))


def as_picture(image: Image.Image | ArrayLike) -> Image.Image:
    """Return an image as RGB.

    Args:
        image: A PIL image, or an array of bytes of shape (height, width, 3).

    Returns:
        The picture.

    Raises:
        SpectralError: If it is neither.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise SpectralError(
            "image",
            expected="a PIL image, or an array of bytes of shape (height, width, 3)",
            got=f"{array.dtype} values of shape {array.shape}",
            fix="Read it by hf_spectral.read_image",
        )
    return Image.fromarray(array)


def working_copy(picture: Image.Image) -> Image.Image:
    """Return a picture at the size at which its superpixels are found: all of it that `region_tree` needs.

    Args:
        picture: Of any size.

    Returns:
        The picture itself, or a smaller copy.
    """
    factor = _WORKING_SIDE / max(picture.size)
    return picture if factor >= 1 else _resized(picture, factor)


def enlarged(atoms: Int[np.ndarray, "rows columns"], size: tuple[int, int]) -> Int[np.ndarray, "height width"]:
    """Return a map at another size, each pixel that of the nearest center.

    Args:
        atoms: A number for each pixel.
        size: Height and width of the result.

    Returns:
        The map.
    """
    rows, columns = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(size, atoms.shape, strict=True))
    return atoms if size == atoms.shape else atoms[rows][:, columns]


def _resized(picture: Image.Image, factor: float) -> Image.Image:
    size = [max(1, round(side * factor)) for side in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)


def _lab(picture: Image.Image, grid: tuple[int, int]) -> Float[np.ndarray, "rows columns 3"]:
    """Return the smoothed picture at working size in CIE Lab, lightness from 0 to 1."""
    picture = working_copy(picture)
    factor = _PIXELS_PER_TOKEN * max(grid) / max(picture.size)
    if factor > 1:
        picture = _resized(picture, factor)
    lab = rgb2lab(np.asarray(picture, dtype=np.float32) / 255) / 100
    return ndimage.gaussian_filter(lab.astype(np.float32), (1, 1, 0), mode="mirror")


def _superpixels(lab: Float[np.ndarray, "rows columns 3"], num_atoms: int) -> Int[np.ndarray, "rows columns"]:
    # SLIC scales its input to the range from 0 to 1; the spacing undoes that.
    span = float(lab.max() - lab.min()) or 1.0
    atoms = slic(
        lab, num_atoms, compactness=_SPACING / span, max_num_iter=_ITERATIONS, convert2lab=False, start_label=0
    )
    return (np.cumsum(np.bincount(atoms.ravel()) > 0) - 1)[atoms]


def _sides(atoms: Int[np.ndarray, "rows columns"]) -> Int[np.ndarray, "2 2 places"]:
    """Return rows and columns of the two pixels at every place where two superpixels touch."""
    down = np.stack(np.nonzero(np.diff(atoms, axis=0)))
    right = np.stack(np.nonzero(np.diff(atoms, axis=1)))
    first = np.concatenate([down, right], axis=1)
    second = first.copy()
    second[0, : down.shape[1]] += 1
    second[1, down.shape[1] :] += 1
    return np.stack([first, second])


def _border_contrasts(
    wide: Float[np.ndarray, "channels rows columns"],
    lab: Float[np.ndarray, "rows columns 3"],
    atoms: Int[np.ndarray, "rows columns"],
    grid: tuple[int, int],
) -> tuple[Int[np.ndarray, "borders 2"], Int[np.ndarray, " borders"], Float[np.ndarray, " borders"]]:
    """Return the pairs of superpixels that touch, the length of their border in pixels, and its summed contrast."""
    shape = np.array(atoms.shape)
    reach = np.maximum(1, np.rint(_REACH * shape / grid).astype(int))
    steps = np.sqrt(sum((np.gradient(lab, axis=axis) ** 2).sum(-1) for axis in (0, 1) if shape[axis] > 1))
    sides = _sides(atoms)
    contrasts, edges = np.zeros((2, sides.shape[2]), dtype=np.float32)
    for side in sides:
        squares = np.zeros_like(contrasts)
        for along in (0, 1):
            ahead, behind = side.copy(), side.copy()
            ahead[along] = np.minimum(side[along] + reach[along], shape[along] - 1)
            behind[along] = np.maximum(side[along] - reach[along], 0)
            squares += ((wide[:, ahead[0], ahead[1]] - wide[:, behind[0], behind[1]]) ** 2).sum(0)
        contrasts += np.sqrt(squares) / 2
        edges += steps[side[0], side[1]]
    pairs, border = _pairs(atoms, sides)
    lengths = np.bincount(border)
    # The color weighs a border as a whole: its edge may lie a pixel beside that of the embedding.
    return pairs, lengths, np.bincount(border, contrasts) * (0.5 + np.bincount(border, edges) / lengths / _EDGE)


def _pairs(
    atoms: Int[np.ndarray, "rows columns"], sides: Int[np.ndarray, "2 2 places"]
) -> tuple[Int[np.ndarray, "borders 2"], Int[np.ndarray, " places"]]:
    """Return the pairs of superpixels that touch, the smaller number first, and the pair of each place."""
    count = int(atoms.max()) + 1
    touching = np.sort(atoms[sides[:, 0], sides[:, 1]], axis=0)
    keys, border = np.unique(touching[0] * count + touching[1], return_inverse=True)
    return np.stack(np.divmod(keys, count), axis=1), border


def _merged(
    features: Float[np.ndarray, "atoms channels"],
    areas: Float[np.ndarray, " atoms"],
    pairs: Int[np.ndarray, "borders 2"],
    lengths: Int[np.ndarray, " borders"],
    contrasts: Float[np.ndarray, " borders"],
) -> tuple[Int[np.ndarray, " atoms"], Float[np.ndarray, " gaps"]]:
    """Merge greedily; return the superpixels in the order of the tree's leaves, and the cost between each two."""
    size, mean = areas.tolist(), list(features.astype(np.float64))
    near: list[dict[int, tuple[int, float]]] = [{} for _ in size]
    for (first, second), length, contrast in zip(pairs.tolist(), lengths.tolist(), contrasts.tolist(), strict=True):
        near[first][second] = near[second][first] = (length, contrast)

    def cost(first: int, second: int) -> float:
        length, contrast = near[first][second]
        gap = mean[first] - mean[second]
        return size[first] * size[second] / (size[first] + size[second]) * float(gap @ gap) * contrast / length

    heap = [(cost(first, second), first, second) for first, second in pairs.tolist()]
    heapq.heapify(heap)
    leaves = [[index] for index in range(len(size))]
    gaps: list[list[float]] = [[] for _ in size]
    is_merged, height = [False] * len(size), 0.0
    while heap:
        price, first, second = heapq.heappop(heap)
        if is_merged[first] or is_merged[second]:
            continue
        merged = len(size)
        is_merged[first] = is_merged[second] = True
        is_merged.append(False)
        # A region is never split after a larger one; no two merges are equal, so that a cut is always one of the tree.
        height = max(price, math.nextafter(height, math.inf))
        size.append(size[first] + size[second])
        mean.append((size[first] * mean[first] + size[second] * mean[second]) / size[merged])
        leaves.append(leaves[first] + leaves[second])
        gaps.append([*gaps[first], height, *gaps[second]])
        around: dict[int, tuple[int, float]] = {}
        for side in (near[first], near[second]):
            for other, (length, contrast) in side.items():
                if other not in (first, second):
                    own = around.get(other, (0, 0.0))
                    around[other] = (own[0] + length, own[1] + contrast)
        near.append(around)
        for other, border in around.items():
            beside = near[other]
            beside.pop(first, None)
            beside.pop(second, None)
            beside[merged] = border
            heapq.heappush(heap, (cost(other, merged), other, merged))
    return np.array(leaves[-1], dtype=np.int64), np.array(gaps[-1], dtype=np.float64)
