"""The affinity of one token, shown as the brightness of the photo."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.visualization.eigenvectors import resized_maps
from hf_spectral.visualization.palette import BACKGROUND, INK

# Opacity of the photo where there is no affinity, and the color that it fades to.
_REST, _NIGHT = 0.10, (10, 20, 40)


def affinity_spotlight(
    image: Image.Image, affinity: Float[Tensor, "height width"], token: tuple[int, int] | None = None
) -> Image.Image:
    """Show the photo bright where the affinity of a token is strong, and dark elsewhere.

    The brightness is the square root of the affinity, scaled from its 2nd percentile (dark) to its 98th (full). The
    percentiles exclude the token itself, whose affinity to itself is often many times larger than to any other token.

    Args:
        image: The photo.
        affinity: Affinity of the token to all tokens.
        token: Row and column of the token, which is marked by a ring; None draws no ring.

    Returns:
        RGB image of the photo's size.

    Raises:
        SpectralError: If `token` is outside the map.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from hf_spectral.visualization import affinity_spotlight
        >>> affinity_spotlight(Image.new("RGB", (60, 40), "white"), torch.rand(4, 6), token=(1, 2)).size
        (60, 40)
    """
    values = affinity.detach().cpu().double().clamp_min(0).sqrt()
    others = values.flatten()
    height, width = values.shape
    if token is not None:
        if not (0 <= token[0] < height and 0 <= token[1] < width):
            raise SpectralError(
                "token", expected=f"a row and a column of {height} x {width}", got=token, fix="Count from 0"
            )
        flat = token[0] * width + token[1]
        others = others[[index for index in range(len(others)) if index != flat]] if len(others) > 1 else others
    low, high = np.quantile(others.numpy(), [0.02, 0.98])
    light = resized_maps(((values - low) / max(high - low, 1e-12)).clamp(0, 1)[None], (image.height, image.width))[0]
    light = (_REST + (1 - _REST) * light.clip(0, 1))[..., None]
    photo = np.asarray(image.convert("RGB"), dtype=np.float64)
    lit = Image.fromarray(np.rint(photo * light + np.array(_NIGHT) * (1 - light)).astype(np.uint8))
    if token is not None:
        _ring(lit, ((token[1] + 0.5) / width * image.width, (token[0] + 0.5) / height * image.height))
    return lit


def _ring(picture: Image.Image, center: tuple[float, float]) -> None:
    """Draw a white ring with a dark rim. It is drawn large and reduced, because PIL does not anti-alias lines."""
    radius, oversampling = max(5.0, max(picture.size) / 70), 4
    side = int(2 * radius * 1.5) * oversampling
    mark = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(mark)
    for color, thickness in ((INK, radius * 0.55), (BACKGROUND, radius * 0.3)):
        reach = (radius + thickness / 2) * oversampling
        box = [side / 2 - reach, side / 2 - reach, side / 2 + reach, side / 2 + reach]
        draw.ellipse(box, outline=(*color, 255), width=round(thickness * oversampling))
    mark = mark.resize((side // oversampling,) * 2, Image.Resampling.LANCZOS)
    place = (round(center[0] - mark.width / 2), round(center[1] - mark.height / 2))
    picture.paste(mark, place, mark)
