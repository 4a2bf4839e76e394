"""Pictures as users have them, and the size at which a backbone reads them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from transformers.image_utils import load_image

from hf_spectral.capture import vision_tower
from hf_spectral.config import require_positive_int
from hf_spectral.errors import SpectralError

_ACCEPTED = "a path, a URL, a PIL image, a numpy array (height, width[, channels]), or encoded bytes"
# A warning is one where the program has made it an error.
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# Backbones without `interpolate_pos_encoding` that read any size all the same.
_RESIZABLE = frozenset(
    {"beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "donut-swin", "pixio", "swin", "swinv2"}
)


@dataclasses.dataclass(frozen=True)
class InputGeometry:
    """The image sizes that a backbone reads.

    Args:
        multiple: Height and width that the sides have to be multiples of, in pixels.
        default: The backbone's own height and width, in pixels.
        is_fixed: True if it reads no other size; pictures are then stretched to it.
        forward_arguments: What its forward needs to be told so that it reads any size.
    """

    multiple: tuple[int, int]
    default: tuple[int, int]
    is_fixed: bool
    forward_arguments: dict[str, Any]

    def size_for(self, height: int, width: int, resolution: int | None = None) -> tuple[int, int]:
        """Return the size at which a picture is read: its aspect ratio kept, its sides rounded to `multiple`.

        Args:
            height: Of the picture, in pixels.
            width: Of the picture, in pixels.
            resolution: Longer side wanted, in pixels; None takes the backbone's own.

        Returns:
            Height and width in pixels, at least one multiple each.

        Raises:
            SpectralError: If `resolution` is no positive integer, or the backbone's size is fixed to another one.
        """
        if resolution is not None:
            require_positive_int("resolution", resolution)
        if self.is_fixed:
            if resolution not in (None, max(self.default)):
                raise SpectralError(
                    "resolution",
                    expected=f"None: this backbone reads {self.default[0]} x {self.default[1]} pixels only",
                    got=resolution,
                    fix="Leave it out, or choose a backbone that interpolates its position embeddings, e.g. DINOv2",
                )
            return self.default
        factor = (resolution or max(self.default)) / max(height, width)
        return _rounded(height * factor, self.multiple[0]), _rounded(width * factor, self.multiple[1])


def input_geometry(model: nn.Module) -> InputGeometry:
    """Read from its configuration which sizes a backbone takes.

    Args:
        model: A supported backbone.

    Returns:
        Its geometry.
    """
    tower: Any = vision_tower(model)
    config = tower.config
    patch = _pair(getattr(config, "patch_stride", None) or config.patch_size)
    parameters = inspect.signature(type(tower).forward).parameters
    # Hiera has the argument too, but reorders its tokens by the configured size alone.
    interpolates = "interpolate_pos_encoding" in parameters and config.model_type != "hiera"
    if "spatial_shapes" in parameters:  # NaFlex: any grid of at most so many patches.
        side = round(config.num_patches**0.5)
        return InputGeometry(patch, (side * patch[0], side * patch[1]), False, {})
    return InputGeometry(
        multiple=patch,
        default=_pair(config.image_size),
        is_fixed=not interpolates and config.model_type not in _RESIZABLE,
        forward_arguments={"interpolate_pos_encoding": True} if interpolates else {},
    )


def read_image(source: Any, timeout: float | None = None) -> Image.Image:
    """Return a picture as RGB, upright as its EXIF orientation says, transparency laid on white.

    Args:
        source: Path, URL, PIL image, array or bytes; or a row of a `datasets` image column, {"bytes", "path"}.
        timeout: Seconds to wait for a URL; None waits for ever.

    Returns:
        The picture, at least one pixel in size.

    Raises:
        SpectralError: If the picture cannot be read, with its name and the reason.
    """
    name = _name_of(source)
    try:
        with contextlib.ExitStack() as opened:
            image = _opened(source, timeout)
            if image is not source:
                opened.callback(image.close)
                _require_modest(image)
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, TypeError, *_BOMBS) as error:
        reason = "a file that is not a picture" if isinstance(error, UnidentifiedImageError) else _first_line(error)
        raise SpectralError(
            "image", expected=_ACCEPTED, got=f"{name} ({reason})", fix="Check that it opens in a viewer"
        ) from error


def _opened(source: Any, timeout: float | None) -> Image.Image:
    if isinstance(source, Mapping) and {"bytes", "path"} & set(source):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source))
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Path) or (isinstance(source, str) and Path(source).is_file()):
        return Image.open(source)
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, str):
        if not source.startswith(("http://", "https://", "data:")):
            raise FileNotFoundError("no such file")
        return load_image(source, timeout=timeout)
    raise TypeError(f"a {type(source).__name__}")


def _require_modest(image: Image.Image) -> None:
    """Refuse a file that announces more pixels than Pillow takes for harmless: it refuses only twice as many.

    Raises:
        DecompressionBombError: Before a pixel is decoded.
    """
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels, above {Image.MAX_IMAGE_PIXELS}: perhaps a decompression bomb"
        )


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ValueError(f"an array of shape {array.shape}")
    if array.dtype == np.uint8:
        return Image.fromarray(array)
    if array.dtype == np.uint16:
        return Image.fromarray((array // 257).astype(np.uint8))
    if np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        return Image.fromarray((array * 255).round().astype(np.uint8))
    raise ValueError(f"an array of {array.dtype}; expected uint8, uint16, or floats from 0 to 1")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        with np.errstate(invalid="ignore"):  # Of a NaN that signals.
            values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("pixels that are not finite")
        low, high = (
            (0.0, 65535.0) if image.mode.startswith("I") and values.max() > 255 else (values.min(), values.max())
        )
        scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny)
        return Image.fromarray((scaled.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _name_of(source: Any) -> str:
    if isinstance(source, Mapping) and source.get("path"):
        source = source["path"]
    if isinstance(source, (str, Path)):
        name = str(source)
        return repr(name if len(name) <= 200 else f"{name[:200]}...")
    return f"a {type(source).__name__}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _rounded(length: float, multiple: int) -> int:
    return max(1, round(length / multiple)) * multiple
