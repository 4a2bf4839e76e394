"""Read pictures as RGB from a path, a URL, bytes, an array or a PIL image."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np
from huggingface_hub.utils import httpx
from PIL import Image, ImageOps, UnidentifiedImageError

from hf_spectral.errors import SpectralError, shown

# Bytes of a picture behind a URL, at most.
_MAX_DOWNLOAD = 256 << 20
_ACCEPTED = "a path, a URL, a PIL image, an array (height, width[, channels]), or encoded bytes"
# Tags of a TIFF file: bits of each channel, and whether channels are stored together (1) or apart (2).
_BITS, _PLANAR = 258, 284
# Raw modes of color files with 16 bits per channel, of which Pillow keeps the high byte alone.
_WIDE_COLOR = re.compile(r"'(RGB[AX]?|CMYK|LA|[RGBAX]);16[BLN]'")

#: One picture, see `read_image`.
Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Mapping[str, Any]


def read_image(source: Any, timeout: float | None = None) -> Image.Image:
    """Return a picture as RGB, upright as its EXIF orientation says, transparency laid on white.

    Pixels of more than 8 bits, and floats, are brought to 8 bits by one rule, whatever they come in (an array, a file,
    a PIL image):

    - 0 is black, and white is the scale's largest value: 1 for floats up to 1; otherwise that of the fewest bits, at
      least 8, that hold the picture's maximum (255, 511, ..., 65535). A picture of 12 bits in a file of 16 is thus seen
      as its 8-bit copy. Floats with a maximum between 1 and 16 fit neither scale: their maximum is white.
    - With negative numbers, the smallest is black and the largest white.
    - All color channels share one scale; the alpha channel has its own.

    Args:
        source: Path, URL (`http`, `https`, `data` or `file`; a string that begins so is never taken for a path), PIL
            image, bytes, or array of shape (height, width), (height, width, 1 | 3 | 4) or (1 | 3 | 4, height, width);
            or a row of a `datasets` image column, {"bytes", "path"}.
        timeout: Seconds to wait for a URL; None waits for ever.

    Returns:
        The picture, at least one pixel in size.

    Raises:
        SpectralError: If the picture cannot be read, with its name and the reason.
    """
    try:
        with contextlib.ExitStack() as opened:
            image = _opened(source, timeout)
            if image is not source:
                opened.callback(image.close)
                _require_modest(image)
            return _as_rgb(ImageOps.exif_transpose(_decoded(image)))
    except Exception as error:  # Of any type: decoders raise struct.error, EOFError, ...; clients their own.
        is_url = isinstance(source, str) and "://" in source
        raise SpectralError(
            "image",
            expected=_ACCEPTED,
            got=f"{_name_of(source)} ({_reason(error)})",
            fix="Check the address, and that it opens in a browser" if is_url else "Check that it opens in a viewer",
        ) from error


def _opened(source: Any, timeout: float | None) -> Image.Image:
    if isinstance(source, Mapping) and {"bytes", "path"} & set(source):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, str):
        # The scheme comes first: what begins like a URL may be too long for a file's name.
        scheme = source[:8].partition(":")[0].lower()
        if scheme in ("http", "https") and source[len(scheme) :].startswith("://"):
            source = _downloaded(source, timeout)
        elif scheme == "data":
            source = _from_data_url(source)
        elif scheme == "file" and source[4:].startswith("://"):
            source = urllib.request.url2pathname(urllib.parse.urlsplit(source).path)
        elif "://" in source and not os.path.exists(source):
            raise ValueError("neither a file nor a URL of http, https, file or data")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Image.open(io.BytesIO(source))
    if isinstance(source, (str, os.PathLike)):
        return Image.open(source)
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source))
    raise TypeError(f"a {type(source).__name__}")


def _downloaded(url: str, timeout: float | None) -> bytes:
    """Return what is behind a URL.

    Raises:
        ValueError: If the timeout is not above 0.
        OSError: If the server answers with an error or sends too much.
        TimeoutError: If it does not finish in time.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout}, which is not above 0")
    start = time.monotonic()
    content = bytearray()
    # A compressed body could unpack to any size.
    options: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}, "follow_redirects": True}
    with httpx.stream("GET", url, timeout=timeout, **options) as response:
        if response.status_code != 200:
            raise OSError(f"HTTP {response.status_code} {response.reason_phrase}".rstrip())
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > _MAX_DOWNLOAD:
            raise OSError(f"{announced} bytes; at most {_MAX_DOWNLOAD} are downloaded")
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _MAX_DOWNLOAD:
                raise OSError(f"more than {_MAX_DOWNLOAD} bytes, the most that is downloaded")
            if timeout is not None and time.monotonic() - start > timeout:
                raise TimeoutError(f"not complete after {timeout:g} s")
    return bytes(content)


def _from_data_url(url: str) -> bytes:
    head, comma, body = url[len("data:") :].partition(",")
    if not comma:
        raise ValueError("a data URL without a comma before its data")
    content = urllib.parse.unquote_to_bytes(body)
    return base64.b64decode(content) if head.strip().lower().endswith(";base64") else content


def _require_modest(image: Image.Image) -> None:
    """Refuse a file with more than `PIL.Image.MAX_IMAGE_PIXELS`; Pillow itself refuses only twice as many.

    Raises:
        DecompressionBombError: Before a pixel is decoded.
    """
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels, above {Image.MAX_IMAGE_PIXELS}: perhaps a decompression bomb"
        )


def _decoded(image: Image.Image) -> Image.Image:
    """Decode the pixels of an image.

    Returns:
        The image, or a copy of 8 bits of a color file with 16 bits per channel.

    Raises:
        ValueError: If the image has no pixels, its file has been closed, or Pillow would decode it wrongly.
    """
    if 0 in image.size:
        raise ValueError(f"{image.width} x {image.height} pixels")
    tiles = getattr(image, "tile", [])
    file: Any = getattr(image, "fp", None)
    if tiles and (file is None or getattr(file, "closed", False)):
        raise ValueError("a PIL image whose file was closed before its pixels were read")
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR) == 2 and len(tags.get(_BITS, ())) > 1 and max(tags[_BITS]) > 8:
        raise ValueError("a TIFF of 16 bits with its channels apart, which Pillow misreads; save them together")
    if _WIDE_COLOR.search(str(tiles)) is not None:
        return _decoded_in_full(image, file)
    image.load()
    return image


def _decoded_in_full(image: Image.Image, file: Any) -> Image.Image:
    """Decode a color file with 16 bits per channel, of which Pillow keeps the high byte alone, as a copy of 8 bits."""
    position, frame = file.tell(), image.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    whole, low = Image.open(io.BytesIO(content)), Image.open(io.BytesIO(content))
    for one in (whole, low):
        one.seek(frame)
    # Read in the other byte order, the high bytes are the low ones. Gray with alpha has no other order in Pillow, but
    # its two numbers fit into four bytes.
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    is_gray = "'LA;16B'" in str(low.tile)

    def swapped(args: Any) -> Any:
        mode = args if isinstance(args, str) else args[0]
        mode = "RGBA" if is_gray else mode[:-1] + other[mode[-1]]
        return mode if isinstance(args, str) else (mode, *args[1:])

    low.tile = [tile._replace(args=swapped(tile.args)) for tile in low.tile]
    if is_gray:
        values = np.ascontiguousarray(low).view(">u2")[..., [0, 0, 0, 1]]
    else:
        values = np.asarray(whole).astype(np.uint16) << 8 | np.asarray(low)
    pixels = _as_bytes(values, has_alpha=whole.mode == "RGBA")
    whole.paste(Image.frombytes(whole.mode, whole.size, pixels.tobytes()))
    return whole


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4) and shape[0] < min(shape[1:]):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in shape:
        raise ValueError(f"an array of shape {shape}")
    return Image.fromarray(np.ascontiguousarray(_as_bytes(array, has_alpha=array.ndim == 3 and array.shape[2] == 4)))


def _as_bytes(values: np.ndarray, has_alpha: bool = False) -> np.ndarray:
    """Return numbers of any type as bytes, by the rule that `read_image` describes.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If some are NaN or infinite.
    """
    if has_alpha:
        return np.concatenate([_as_bytes(values[..., :3]), _as_bytes(values[..., 3:])], axis=2)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"an array of {values.dtype}")
    with np.errstate(invalid="ignore"):  # NaNs may signal.
        numbers = values.astype(np.result_type(values.dtype, np.float32))
    num_odd = numbers.size - int(np.isfinite(numbers).sum())
    if num_odd:
        raise ValueError(f"NaN or infinity in {num_odd} of {numbers.size} numbers")
    low, high = float(numbers.min()), float(numbers.max())
    if low >= 0:
        low = 0.0
        if values.dtype.kind == "f" and high <= 1:
            high = 1.0
        elif values.dtype.kind != "f" or high >= 16:
            high = 2.0 ** max(8, round(high).bit_length()) - 1
    largest = max(abs(low), abs(high)) or 1.0
    low, high = low / largest, high / largest  # So that their difference is finite.
    return np.rint((numbers / largest - low) * (255 / ((high - low) or 1.0))).clip(0, 255).astype(np.uint8)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_as_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _name_of(source: Any) -> str:
    if isinstance(source, Mapping) and source.get("path"):
        source = source["path"]
    return repr(shown(str(source))) if isinstance(source, (str, os.PathLike)) else f"a {type(source).__name__}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "a file that is not a picture"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    # Without the path, which the message names already.
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return (text.splitlines() or [type(error).__name__])[0][:200]
