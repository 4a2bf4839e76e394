"""One token's affinity as light on the photo."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.visualization.eigenvectors import resized_maps
from hf_spectral.visualization.palette import BACKGROUND, INK

# What is left of the photo where there is no affinity, and the color it sinks into.
_REST, _NIGHT = 0.10, (10, 20, 40)


def affinity_spotlight(
    image: Image.Image, affinity: Float[Tensor, "height width"], token: tuple[int, int] | None = None
) -> Image.Image:
    """Light the photo where a token's affinity is strong, and let the rest sink into the dark.

    The light is the square root of the affinity, from its 2nd percentile (dark) to its 98th (full), the token itself
    not counted: to itself it is often related many times as strongly as to any other.

    Args:
        image: The photo.
        affinity: Of the token to all tokens.
        token: Its row and column, marked by a ring; None marks none.

    Returns:
        RGB picture of the photo's size.

    Raises:
        SpectralError: If the token lies outside the map.
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
    """Draw a white ring with a dark rim, smooth: PIL draws no smooth lines, so it is drawn large and reduced."""
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
