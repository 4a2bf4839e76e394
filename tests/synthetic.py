"""Records and planted partitions made from a seed, for tests of the mathematics."""

import numpy as np
import torch
from PIL import Image

from hf_spectral.basis import BasisAccumulator
from hf_spectral.config import SpectralConfig
from hf_spectral.grid import TokenGrid
from hf_spectral.records import AttentionRecord

# Each pathway with every affinity that serves it.
AFFINITIES = [
    ("where", "attention"),
    ("where", "exponential"),
    ("where", "cosine"),
    ("where", "knn"),
    ("what", "exponential"),
    ("what", "cosine"),
    ("what", "knn"),
]


def random_record(height=6, width=8, heads=2, dim=5, seed=0, index=0, **fields):
    """A layer of unrelated Gaussian tokens."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, heads, height * width, dim, generator=generator) for _ in range(3))
    grid = TokenGrid(height, width)
    return AttentionRecord(f"layer.{index}", index, query, key, value, dim**-0.5, grid, **fields)


def planted_record(labels, noise=0.2, heads=2, dim=8, seed=0, index=0):
    """A layer whose tokens of one label point the same way, up to noise.

    `labels` is an integer map (height, width).
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(int(labels.max()) + 1, heads * dim, generator=generator), dim=1
    )
    tokens = directions[labels.flatten()] + noise * torch.randn(labels.numel(), heads * dim, generator=generator) / dim
    tokens = tokens.view(1, -1, heads, dim).transpose(1, 2).contiguous()
    grid = TokenGrid(*labels.shape)
    return AttentionRecord(f"layer.{index}", index, 4 * tokens, 4 * tokens, tokens, 1.0, grid)


def three_blobs(height=20, width=24):
    """A label map of three regions."""
    labels = torch.zeros(height, width, dtype=torch.long)
    labels[: height // 2, width // 2 :] = 1
    labels[height // 2 :, width // 3 :] = 2
    return labels


def photo(height=60, width=90, seed=0):
    """A picture of two flat halves with noise on them."""
    pixels = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    pixels[:, width // 2 :] += 150
    return Image.fromarray(pixels.astype(np.uint8))


EQUAL = [[(6, 8)] * 3] * 12


def dataset(shapes, heads=2, dim=5, shared=0.7):
    """Images whose tokens share a few directions, so that the leading eigenvalues stand apart."""
    images = []
    for image, layers in enumerate(shapes):
        records = []
        for index, shape in enumerate(layers):
            record = random_record(*shape, heads=heads, dim=dim, seed=100 * image + index, index=index)
            common = random_record(2, 2, heads=heads, dim=dim, seed=index)
            which = torch.arange(shape[0] * shape[1]) % 4
            for name in ("query", "key", "value"):
                tokens = getattr(record, name)
                tokens += 3 * shared * getattr(common, name)[:, :, which] + 0.5
            records.append(record)
        images.append(records)
    return images


def fitted(images, pathway="what", layer_weights="equal", **settings):
    accumulator = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights=layer_weights), **settings)
    for records in images:
        accumulator.add_sums(records)
    for records in images:
        accumulator.add_gram(records)
    return accumulator
