"""Records and planted partitions made from a seed, for tests of the mathematics."""

import torch

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
