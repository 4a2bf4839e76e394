"""Eigenvectors as images: one in blue and red, or the first three as one color image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy.stats import norm, rankdata
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.torch_state import plain_torch
from hf_spectral.visualization.palette import DIVERGING, bytes_from_oklab

# Numbers as the pipelines give them, as rows of a dataset hold them, or as another library does.
Numbers = Tensor | np.ndarray | Image.Image | Sequence


def read_numbers(argument: str, values: Numbers, dimensions: int) -> np.ndarray:
    """Read a tensor, an array, a PIL image of one channel, or nested lists.

    Args:
        argument: Name to show in the message.
        values: Numbers.
        dimensions: How many dimensions they must have.

    Returns:
        Float64 array.

    Raises:
        SpectralError: If they have another number of dimensions, or lists are ragged.
    """
    numbers = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    try:
        array = np.array(numbers, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise SpectralError(
            argument, expected=f"numbers in {dimensions} dimensions", got=error, fix="Pass a tensor or an array"
        ) from error
    if array.ndim != dimensions:
        raise SpectralError(
            argument, expected=f"{dimensions} dimensions", got=f"shape {array.shape}", fix="Pass one image's"
        )
    return array


def eigenvector_image(values: Numbers, size: tuple[int, int] | None = None, bound: float | None = None) -> Image.Image:
    """Color one eigenvector: blue below zero, white at zero, red above.

    The color map is symmetric around zero and ends at `bound`; larger values are clipped. Values are interpolated
    before they are colored.

    Args:
        values: The eigenvector of one image, (height, width): a tensor, an array or nested lists.
        size: Height and width of the image in pixels; None draws one pixel per token.
        bound: Positive magnitude of the strongest colors. Pass the same bound for several images to make their colors
            comparable. None takes the 98th percentile of the magnitudes, so that single extreme tokens have no effect.

    Returns:
        RGB image.

    Raises:
        SpectralError: If `values` has another number of dimensions.

    Example:
        >>> import torch
        >>> from hf_spectral.visualization import eigenvector_image
        >>> eigenvector_image(torch.randn(16, 24), size=(160, 240)).size
        (240, 160)
    """
    values = read_numbers("values", values, 2)
    maps = resized_maps(values[None], size)[0]
    if bound is None:
        bound = max(float(np.percentile(np.abs(values), 98)), 1e-12)
    position = (np.clip(maps / bound, -1, 1) + 1) / 2
    return Image.fromarray(DIVERGING[np.rint(position * 255).astype(np.intp)])


def eigenvectors_to_rgb(
    eigenvectors: Numbers,
    eigenvalues: Numbers | None = None,
    size: tuple[int, int] | None = None,
    scale: float | None = None,
) -> Image.Image:
    """Show the first three eigenvectors after the trivial one as one color image.

    The eigenvectors control the three axes of the perceptually uniform color space OKLab: the first from green to red,
    the second from blue to yellow, the third from dark to light. By default, the position on an axis is the mean of the
    value, stretched from the 2nd to the 98th percentile, and its rank: with values alone, an eigenvector that separates
    a small region would leave the rest of the image uniform. The entry of largest magnitude of each eigenvector is made
    positive first, so that the image does not depend on the signs.

    Args:
        eigenvectors: Eigenvectors of one image, (num_eigenvectors, height, width), with the trivial one at index 0: a
            tensor, an array or nested lists. If fewer than three others are given, the remaining axes stay neutral.
        eigenvalues: Eigenvalues of the normalized Laplacian. If given, eigenvector j > 1 spans only the share
            (1 - lambda_j) / (1 - lambda_1) of its axis, at least half.
        size: Height and width of the image in pixels; None draws one pixel per token.
        scale: Standard deviation of the values over the dataset, for dataset-level eigenvectors; 1 / sqrt(num_nodes)
            for those of a basis. The position on an axis is then the normal cumulative distribution function of the
            value, and signs are kept, so that a color has the same meaning in every image.

    Returns:
        RGB image.

    Raises:
        SpectralError: If there is only the trivial eigenvector, or the number of dimensions is another.

    Example:
        >>> import torch
        >>> from hf_spectral.visualization import eigenvectors_to_rgb
        >>> eigenvectors_to_rgb(torch.randn(4, 16, 24), size=(160, 240)).size
        (240, 160)
    """
    eigenvectors = read_numbers("eigenvectors", eigenvectors, 3)
    if len(eigenvectors) < 2:
        raise SpectralError(
            "eigenvectors", expected="at least 2", got=len(eigenvectors), fix="Solve with num_eigenvectors=4 or more"
        )
    chosen = eigenvectors[1:4].reshape(len(eigenvectors[1:4]), -1)
    spread = _spread_over_image(chosen) if scale is None else norm.cdf(chosen / scale) - 0.5
    if eigenvalues is not None:
        scales = (1 - read_numbers("eigenvalues", eigenvalues, 1)[1:4]).clip(1e-6)
        spread = spread * (scales / scales[0]).clip(0.5, 1)[:, None]
    maps = resized_maps(spread.reshape(-1, *eigenvectors.shape[1:]), size).clip(-0.5, 0.5)
    lab = np.zeros((*maps.shape[1:], 3))
    lab[..., 0] = 0.66
    for axis, (values, gain) in zip((1, 2, 0), zip(maps, (0.34, 0.34, 0.46), strict=False), strict=False):
        lab[..., axis] += gain * values
    return Image.fromarray(bytes_from_oklab(lab))


def _spread_over_image(values: np.ndarray) -> np.ndarray:
    """Map each row to the range from -0.5 to 0.5 by its values and ranks, after fixing its sign."""
    largest = np.take_along_axis(values, np.abs(values).argmax(1)[:, None], axis=1)
    values = np.where(largest < 0, -values, values)
    low, high = np.quantile(values, [0.02, 0.98], axis=1)[:, :, None]
    stretched = ((values - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (stretched + (rankdata(values, axis=1) - 0.5) / values.shape[1]) / 2 - 0.5


@plain_torch()
def resized_maps(
    maps: Float[np.ndarray, "channels _h _w"], size: tuple[int, int] | None
) -> Float[np.ndarray, "channels _rows _columns"]:
    """Interpolate maps bicubically to the size of an image.

    Args:
        maps: Values on the token grid.
        size: Height and width in pixels; None keeps the token grid.

    Returns:
        Float64 array. Interpolated values may slightly exceed the range of `maps`.
    """
    if size is None:
        return maps
    values = torch.from_numpy(maps)[None]
    return torch.nn.functional.interpolate(values, tuple(size), mode="bicubic", align_corners=False)[0].numpy()
