"""Clusters of all tokens of a dataset: the same number means the same thing in every image."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from hf_spectral.errors import SpectralError
from hf_spectral.segmentation import merged_clusters, upsample

# Tokens that decide where the clusters are: more than enough for the mean of a cluster, seconds of k-means.
SAMPLE_TOKENS = 50_000

Maps = Float[np.ndarray, "eigenvectors _height _width"]


def unit_rows(maps: Maps) -> Float[np.ndarray, "nodes channels"]:
    """Return each token's coordinates, the trivial eigenvector dropped, as a unit vector (a zero one stays zero).

    Args:
        maps: Eigenvectors of one image.

    Returns:
        One row per token, float32.
    """
    rows = maps[1:].reshape(len(maps) - 1, -1).T.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


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


def find_centroids(
    images: Iterable[Maps], num_tokens: Sequence[int], num_segments: int, seed: int
) -> tuple[Float[np.ndarray, "centers channels"], Int[np.ndarray, " centers"]]:
    """Cluster a sample of all images' tokens, as `semantic_segmentation` does.

    Args:
        images: Eigenvectors of each image.
        num_tokens: Of each image.
        num_segments: Clusters; there are fewer where fewer tokens differ.
        seed: Seed of sample and starts.

    Returns:
        One row per center, and the cluster of each, of which the largest is 0.

    Raises:
        SpectralError: If there are fewer tokens than clusters.
    """
    if num_segments > sum(num_tokens):
        raise SpectralError(
            "num_segments",
            expected=f"at most the number of tokens of all images, {sum(num_tokens)}",
            got=num_segments,
            fix="Ask for fewer",
        )
    chosen = sample_tokens(num_tokens, seed)
    rows = np.concatenate([unit_rows(maps)[tokens] for maps, tokens in zip(images, chosen, strict=True)])
    # Rounding makes copies of a token differ in the last bits.
    distinct = len(np.unique(rows.round(4), axis=0))
    centers, cluster, _ = merged_clusters(rows, min(num_segments, distinct), distinct, seed)
    return np.asarray(centers, dtype=np.float32), cluster


def label_images(
    images: Iterable[Maps],
    sizes: Iterable[tuple[int, int]],
    centers: Float[np.ndarray, "centers channels"],
    cluster: Int[np.ndarray, " centers"],
    num_segments: int,
) -> Iterator[bytes]:
    """Label the pixels of each image with the nearest cluster, distances interpolated between tokens.

    Args:
        images: Eigenvectors of each image.
        sizes: Height and width of each in pixels.
        centers: What `find_centroids` gave.
        cluster: The cluster of each center.
        num_segments: Clusters asked for: above 256 all pictures have 16 bits.

    Yields:
        A PNG picture, value = cluster.
    """
    kind = np.uint8 if num_segments <= 256 else np.uint16
    for maps, size in zip(images, sizes, strict=True):
        distances = torch.cdist(torch.from_numpy(unit_rows(maps)), torch.from_numpy(centers))
        nearest = upsample(distances.T.reshape(len(centers), *maps.shape[1:]).contiguous(), size)
        encoded = io.BytesIO()
        Image.fromarray(cluster[nearest.numpy()].astype(kind)).save(encoded, format="png")
        yield encoded.getvalue()
