"""From distances on the token grid to labels of pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.torch_state import plain_torch

_STRIP_VALUES = 4_000_000  # interpolated distances held at once: 16 MB


@plain_torch()
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
    labels = torch.empty(checked_size(size, (1, 1)), dtype=torch.int64, device=distances.device)
    for part, wide in _strips(distances, size):
        least, nearest = wide(0), labels[part].zero_()
        for index in range(1, len(distances)):  # a running minimum: 2 to 3 times as fast as argmin
            rival = wide(index)
            nearest.masked_fill_(rival < least, index)
            torch.minimum(least, rival, out=least)
    return labels


@plain_torch()
def upsample_clusters(
    distances: Float[Tensor, "centers height width"], cluster: Int[Tensor, " centers"], size: tuple[int, int]
) -> tuple[Int[Tensor, "pixel_rows pixel_columns"], Float[Tensor, "pixel_rows pixel_columns"]]:
    """Label each pixel with the cluster of the nearest center, as `upsample` does, and say how sure that is.

    Args:
        distances: Distance of each token to each center, finite.
        cluster: Cluster of each center, from 0, none missing.
        size: Height and width of the labels in pixels.

    Returns:
        Cluster of each pixel, and its confidence, from 0 to 1: 1 - a / b, with a the distance to the nearest center and
        b that to the nearest one of another cluster. It is 0 where both are equal, and 1 where there is one cluster.

    Raises:
        SpectralError: If `size` is not two positive integers.
    """
    labels = torch.empty(checked_size(size, (1, 1)), dtype=torch.int64, device=distances.device)
    confidence = torch.empty_like(labels, dtype=distances.dtype)
    centers = [(cluster == index).nonzero().flatten().tolist() for index in range(int(cluster.max()) + 1)]
    for part, wide in _strips(distances, size):
        second = torch.full_like(confidence[part], torch.inf)
        least, nearest = second.clone(), labels[part].zero_()
        for index, own in enumerate(centers):
            rival = functools.reduce(torch.minimum, map(wide, own))
            is_nearer = rival < least
            nearest.masked_fill_(is_nearer, index)
            second = torch.where(is_nearer, least, torch.minimum(second, rival))
            torch.minimum(least, rival, out=least)
        confidence[part] = (1 - least / second).nan_to_num(0)
    return labels, confidence


def _strips(
    distances: Float[Tensor, "segments height width"], size: tuple[int, int]
) -> Iterator[tuple[slice, Callable[[int], Tensor]]]:
    """Yield rows of pixels, and a function that interpolates one of the maps there."""
    rows = distances.shape[1]
    height, width = size
    across = torch.nn.functional.interpolate(distances[None], (rows, width), mode="bilinear", align_corners=False)[0]
    centers = torch.arange(height, dtype=torch.float32, device=across.device) + 0.5
    position = (centers * (rows / height) - 0.5).clamp(0, rows - 1)
    above = position.floor().long()
    below = (above + 1).clamp_max(rows - 1)
    share = (position - above).to(across.dtype)[:, None]
    strip = max(1, _STRIP_VALUES // (4 * width))

    def interpolated(part: slice, index: int) -> Tensor:
        return torch.lerp(across[index, above[part]], across[index, below[part]], share[part])

    for start in range(0, height, strip):
        part = slice(start, start + strip)
        yield part, functools.partial(interpolated, part)


def checked_size(size: tuple[int, int] | None, default: tuple[int, int]) -> tuple[int, int]:
    """Validate a size in pixels.

    Args:
        size: Height and width, or None.
        default: What None stands for.

    Returns:
        Height and width.

    Raises:
        SpectralError: If `size` is not two positive numbers.
    """
    if size is None:
        return default
    if len(size) != 2 or min(size) < 1:
        raise SpectralError(
            "size", expected="height and width, at least 1 pixel each", got=size, fix="Give (image.height, image.width)"
        )
    return int(size[0]), int(size[1])
