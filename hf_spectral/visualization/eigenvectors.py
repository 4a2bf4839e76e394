"""Eigenvectors as pictures: one in blue and red, or the first three as one color picture."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy.stats import norm, rankdata
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.visualization.palette import bytes_from_oklab, diverging_table


def eigenvector_image(
    values: Float[Tensor, "height width"], size: tuple[int, int] | None = None, bound: float | None = None
) -> Image.Image:
    """Color one eigenvector: blue below zero, white at zero, red above.

    Both ends of the color map stand for the same magnitude, so that a few extreme tokens do not pale all others. Values
    are interpolated before they are colored.

    Args:
        values: One map.
        size: Height and width of the picture in pixels; `None`: one pixel a token.
        bound: That magnitude, above 0: one number for many images makes their colors comparable. `None`: the 98th
            percentile of this map.

    Returns:
        RGB picture.
    """
    maps = resized_maps(values[None], size)[0]
    if bound is None:
        bound = max(float(np.percentile(np.abs(values.detach().cpu().double().numpy()), 98)), 1e-12)
    position = (np.clip(maps / bound, -1, 1) + 1) / 2
    return Image.fromarray(diverging_table()[np.rint(position * 255).astype(np.intp)])


def eigenvectors_to_rgb(
    eigenvectors: Float[Tensor, "eigenvectors height width"],
    eigenvalues: Float[Tensor, " eigenvectors"] | None = None,
    size: tuple[int, int] | None = None,
    scale: float | None = None,
) -> Image.Image:
    """Show the first three eigenvectors after the trivial one as one color picture.

    They steer the three axes of the perceptual space OKLab: the first green to red, the second blue to yellow, the
    third dark to light, so that equal steps look equally large. Each is half its value, stretched from the 2nd to the
    98th percentile, half its rank: eigenvectors that single out a small part would leave the rest one flat color.
    Signs are fixed first (the entry of largest magnitude is positive), so the picture does not depend on them.

    Args:
        eigenvectors: Maps of one image, the trivial one at index 0; missing ones (fewer than three) stay neutral.
        eigenvalues: Of the normalized Laplacian. If given, eigenvector j > 1 spans (1 - lambda_j) / (1 - lambda_1) of
            its axis, at least half: weak eigenvectors tint, strong ones color.
        size: Height and width of the picture in pixels; `None`: one pixel a token.
        scale: For dataset-level eigenvectors, whose colors shall mean the same in every image: the size that values
            have over the dataset, 1 / sqrt(num_nodes) for those of a basis. Each value then spans its axis by its place
            in the normal distribution of that size; signs are kept as the basis has them. `None`: as said above.

    Returns:
        RGB picture.

    Raises:
        SpectralError: If there is only the trivial eigenvector.
    """
    if len(eigenvectors) < 2:
        raise SpectralError(
            "eigenvectors", expected="at least 2", got=len(eigenvectors), fix="Solve with num_eigenvectors=4 or more"
        )
    chosen = eigenvectors[1:4].detach().cpu().double().flatten(1).numpy()
    spread = _spread_over_image(chosen) if scale is None else norm.cdf(chosen / scale) - 0.5
    if eigenvalues is not None:
        scales = (1 - eigenvalues[1:4].detach().cpu().double().numpy()).clip(1e-6)
        spread = spread * (scales / scales[0]).clip(0.5, 1)[:, None]
    maps = resized_maps(torch.from_numpy(spread).reshape(-1, *eigenvectors.shape[1:]), size).clip(-0.5, 0.5)
    lab = np.zeros((*maps.shape[1:], 3))
    lab[..., 0] = 0.66
    for axis, (values, gain) in zip((1, 2, 0), zip(maps, (0.34, 0.34, 0.46), strict=False), strict=False):
        lab[..., axis] += gain * values
    return Image.fromarray(bytes_from_oklab(lab))


def _spread_over_image(values: np.ndarray) -> np.ndarray:
    """Bring each row to -0.5 .. 0.5 by its own values and ranks, its sign fixed first."""
    largest = np.take_along_axis(values, np.abs(values).argmax(1)[:, None], axis=1)
    values = np.where(largest < 0, -values, values)
    low, high = np.quantile(values, [0.02, 0.98], axis=1)[:, :, None]
    stretched = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (stretched + (rankdata(values, axis=1) - 0.5) / values.shape[1]) / 2 - 0.5


def resized_maps(maps: Float[Tensor, "channels _h _w"], size: tuple[int, int] | None) -> np.ndarray:
    """Interpolate maps to a picture's size, smoothly.

    Args:
        maps: Values on tokens.
        size: Height and width in pixels; None leaves them.

    Returns:
        Float64 array; values may overshoot a little.
    """
    values = maps.detach().cpu().double()
    if size is not None:
        values = torch.nn.functional.interpolate(values[None], tuple(size), mode="bicubic", align_corners=False)[0]
    return values.numpy()
