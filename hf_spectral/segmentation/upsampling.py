"""From distances on the token grid to labels of pixels."""

from __future__ import annotations

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
    count, rows, _ = distances.shape
    height, width = checked_size(size, (1, 1))
    wide = torch.nn.functional.interpolate(distances[None], (rows, width), mode="bilinear", align_corners=False)[0]
    centers = torch.arange(height, dtype=torch.float32, device=wide.device) + 0.5
    position = (centers * (rows / height) - 0.5).clamp(0, rows - 1)
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
