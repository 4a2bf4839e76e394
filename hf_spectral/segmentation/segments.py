"""The segments of one image: labels, scores, every other number of them, kept in a file."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor

from hf_spectral.checks import is_int, require_int, require_number
from hf_spectral.errors import SpectralError
from hf_spectral.kept import Kept
from hf_spectral.segmentation.embedding import centroids
from hf_spectral.segmentation.region_tree import RegionTree, enlarged
from hf_spectral.tensor_files import read_described, read_tensors, write_described
from hf_spectral.torch_state import plain_torch
from hf_spectral.visualization.palette import label_picture

#: Name of the file of a segmentation, beside that of a result.
SEGMENTATION_NAME = "segmentation.safetensors"
_FORMAT = "hf_spectral.Segmentation/1"
# For each value in a file, whether it is valid.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value == _FORMAT,
    "num_segments": lambda value: is_int(value) and value >= 1,
    "size": lambda value: len(value) == 2 and all(is_int(side) and 1 <= side <= 2**16 for side in value),
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Segmentation(Kept):
    """A partition of one image.

    Args:
        num_segments: Number of segments.
        size: Height and width of the labels in pixels.
        tree: Every other number of segments; None if the method gives only one.
        given: Labels and scores; None if there is a tree.
    """

    num_segments: int
    size: tuple[int, int]
    tree: RegionTree | None = None
    given: tuple[Int[Tensor, "height width"], Float[Tensor, " segments"]] | None = None

    _files = (SEGMENTATION_NAME,)
    _argument = "source"
    _expected = "a file that Segmentation.save_pretrained wrote"
    _fix = "Save it again"

    @functools.cached_property
    @plain_torch()
    def labels(self) -> Int[Tensor, "height width"]:
        """Segment of each pixel, 0 to `num_segments` - 1, numbered by decreasing area; no number is missing."""
        if self.tree is None:
            return self._given[0]
        return torch.from_numpy(self.tree.draw(self.num_segments, self.size).astype(np.int64))

    @functools.cached_property
    @plain_torch()
    def scores(self) -> Float[Tensor, " segments"]:
        """One value per segment, from 0 to 1: how far it stands out.

        The mean over its tokens (superpixels, of the tree) of 1 - a / b, with a the distance to the segment's own
        centroid and b that to the nearest rival's (a touching segment; any other for `kmeans`), not less than 0. 1:
        every token sits on its centroid; 0: tokens are as near to the rival, or (as for the silhouette) the segment is
        a single token. A sole segment has 1.
        """
        if self.tree is None:
            return self._given[1]
        segments = self.tree.cut(self.num_segments)
        touching = np.zeros((self.num_segments, self.num_segments), dtype=bool)
        first, second = segments[self.tree.borders].T
        touching[first, second] = touching[second, first] = True
        distances = cdist(self.tree.features, centroids(self.tree.features, segments))
        return torch.from_numpy(margins(distances, segments, touching, self.tree.areas)).float()

    def at(self, num_segments: int | None = None, *, threshold: float | None = None) -> Segmentation:
        """Return another number of segments of the same tree: each of them is one of these, or part or union of some.

        Nothing is solved again. Every number of segments is nested in every smaller one.

        Example:
            >>> found = hf_spectral.segment(result, image=photo)
            >>> coarse, fine = found.at(4), found.at(threshold=0.01)

        Args:
            num_segments: 1 to the number of superpixels.
            threshold: Instead: merges of at least this cost are not made; at least 0. The cost of a merge is the growth
                of the embedding's variance (1 over the whole picture) times the contrast of the border.

        Returns:
            The segments.

        Raises:
            SpectralError: If not exactly one of the two is given, it is out of range, or there is no tree.
        """
        if self.tree is None:
            raise SpectralError(
                "method",
                expected="'tree', which gives every number of segments",
                got="segments without a tree",
                fix="Call segment(result, image=...)",
            )
        most = len(self.tree.features)
        if (num_segments is None) == (threshold is None):
            raise SpectralError(
                "num_segments", expected="this or `threshold`", got="both or none", fix="Give one of the two"
            )
        if num_segments is None:
            num_segments = self.tree.count(require_number("threshold", threshold, 0, math.inf))
        if require_int("num_segments", num_segments, 1) > most:
            raise SpectralError(
                "num_segments",
                expected=f"at most the number of superpixels, {most}",
                got=num_segments,
                fix=f"Segment with num_segments={num_segments} for finer superpixels",
            )
        return Segmentation(int(num_segments), self.size, self.tree)

    def to_image(self) -> Image.Image:
        """Draw the labels as a picture, value = segment. Faster than `labels`, whose numbers are 8 bytes each.

        Returns:
            Picture of the labels' size, of mode "P" with a palette, or "I;16" without one beyond 256 segments.
        """
        drawn = self.labels.numpy() if self.tree is None else self.tree.draw(self.num_segments, self.size)
        return label_picture(drawn, self.num_segments)

    def contour_map(self) -> Image.Image:
        """Draw the ultrametric contour map: every border of the tree, the brighter the later its two sides are merged.

        A pixel's value is 255 (h / h_max)^(1/4) on a border (rounded, at least 1), with h the cost of the merge that
        removes it, and 0 elsewhere. Dark borders below a value go with all that are darker, so that those that remain
        are closed.

        Returns:
            Picture of mode "L", of the labels' size.

        Raises:
            SpectralError: If there is no tree.

        Reference:
            Arbelaez, Maire, Fowlkes, Malik, Contour Detection and Hierarchical Image Segmentation, TPAMI 2011.
        """
        tree = self.at(1).tree
        assert tree is not None
        atoms = enlarged(tree.atoms, self.size)
        values = np.zeros(self.size, dtype=np.uint8)
        if len(tree.heights):
            bright = np.rint(255 * (tree.heights / tree.heights.max()) ** 0.25).clip(1, 255)
            # Two superpixels come together by the largest cost between them in the order of the tree.
            table = np.zeros((len(bright) + 1, len(bright) + 1), dtype=np.uint8)
            for first, second in tree.borders:
                table[first, second] = table[second, first] = bright[first:second].max()
            np.maximum(values[1:], table[atoms[1:], atoms[:-1]], out=values[1:])
            np.maximum(values[:, 1:], table[atoms[:, 1:], atoms[:, :-1]], out=values[:, 1:])
        return Image.fromarray(values)

    def save_pretrained(self, path: str | os.PathLike[str]) -> Path:
        """Write the segments, with their tree, as one safetensors file.

        Example:
            >>> result.save_pretrained("photo/"), found.save_pretrained("photo/")
            >>> Segmentation.from_pretrained("photo/").at(8)

        Args:
            path: A folder, such as that of the result, which then holds `segmentation.safetensors`; or a file, whose
                name ends in `.safetensors`. Missing folders are created.

        Returns:
            The path given, which `from_pretrained` reads.
        """
        if self.tree is None:
            tensors = {"labels": self.labels.int(), "scores": self.scores}
        else:
            names = ("atoms", "heights", "features")
            tensors = {name: torch.from_numpy(getattr(self.tree, name)) for name in names}
        described = {"format": _FORMAT, "num_segments": self.num_segments, "size": list(self.size)}
        return write_described(path, SEGMENTATION_NAME, described, tensors)

    @classmethod
    def _read(cls, path: Path) -> Segmentation:
        header, described = read_described(path, _CHECKS)
        count, size = described["num_segments"], tuple(described["size"])
        if "labels" in header:
            tensors, _ = read_tensors(path, {"labels": (torch.int32, size), "scores": (torch.float32, (count,))})
            _require_numbers(tensors["labels"], count)
            return cls(count, size, given=(tensors["labels"].long(), tensors["scores"]))
        atoms, channels = header["features"]["shape"]
        if count > atoms:
            raise ValueError(f"{count} segments of {str(atoms)[:20]} superpixels")
        forms = {
            "atoms": (torch.int32, tuple(header["atoms"]["shape"])),
            "heights": (torch.float64, (atoms - 1,)),
            "features": (torch.float32, (atoms, channels)),
        }
        tensors, _ = read_tensors(path, forms)
        _require_numbers(tensors["atoms"], atoms)
        tree = RegionTree(**{name: tensor.numpy() for name, tensor in tensors.items()})
        if (tree.heights < 0).any() or len(np.unique(tree.heights)) < len(tree.heights):
            raise ValueError("costs of merges that are equal, or below 0")
        return cls(count, size, tree)

    @property
    def _given(self) -> tuple[Tensor, Tensor]:
        assert self.given is not None
        return self.given

    def _facts(self) -> dict[str, str]:
        facts = {"segments": f"{self.num_segments}, of {self.size[0]} x {self.size[1]} pixels"}
        return facts if self.tree is None else {**facts, "by at()": f"1 to {len(self.tree.features)} segments"}


def margins(
    distances: Float[np.ndarray, "nodes segments"],
    labels: Int[np.ndarray, " nodes"],
    touching: Bool[np.ndarray, "segments segments"] | None = None,
    areas: Int[np.ndarray, " nodes"] | None = None,
) -> Float[np.ndarray, " segments"]:
    """Return how far each segment stands out, see `Segmentation.scores`.

    Args:
        distances: From each node, a token or superpixel, to each segment's centroid.
        labels: Segment of each node.
        touching: Whether two segments touch, which makes them rivals; None if all are rivals.
        areas: Weight of each node; None if all have the same.

    Returns:
        One value per segment, from 0 to 1.
    """
    count = distances.shape[1]
    if count == 1:
        return np.ones(1)
    own = distances[np.arange(len(labels)), labels]
    rivals = distances.copy()
    if touching is not None:
        rivals[~touching[labels]] = np.inf
    rivals[np.arange(len(labels)), labels] = np.inf
    nearest = rivals.min(1)
    margin = np.divide(nearest - own, np.maximum(nearest, own), out=np.zeros_like(own), where=nearest > 0)
    weights = np.ones(len(labels)) if areas is None else areas
    means = np.bincount(labels, margin * weights) / np.bincount(labels, weights)
    return np.where(np.bincount(labels) > 1, means, 0).clip(0, 1)


def _require_numbers(labels: Int[Tensor, "rows columns"], count: int) -> None:
    if not torch.equal(torch.unique(labels).long(), torch.arange(count)):
        raise ValueError(f"labels other than 0 to {count - 1}")
