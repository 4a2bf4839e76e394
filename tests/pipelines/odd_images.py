"""Three hundred odd image files, made from a seed: sizes, modes, containers, damage."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

COUNT = 300
_MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
)
_SIZES = [(1, 1), (1, 2), (2, 1), (1, 900), (6000, 40), (40, 6000), (13, 13), (15, 14), (700, 3), (3000, 2000)]
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "SGI")


def odd_files(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield `COUNT` names and contents; names end as a folder of pictures expects them to."""
    rng = np.random.default_rng(seed)
    makers = (*_sizes(rng), *_modes(rng), *_containers(rng), *_turned(rng), *_animated(rng), *_lying(), *_numbers(rng))
    made = list(makers)
    damaged = _damaged(rng, [content for _, content in made if 100 < len(content) < 200_000])
    while len(made) < COUNT:
        made.append(next(damaged))
    yield from ((f"{number:03d}-{name}", content) for number, (name, content) in enumerate(made[:COUNT]))


def _picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    small = rng.integers(0, 256, (max(1, min(height, 9)), max(1, min(width, 9)), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def _encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _sizes(rng):
    for width, height in _SIZES:
        yield f"{width}x{height}.png", _encoded(_picture(rng, width, height))
    for _ in range(30):
        width, height = (int(2 ** rng.uniform(0, 10)) for _ in range(2))
        yield f"{width}x{height}.jpg", _encoded(_picture(rng, width, height), "JPEG")


def _modes(rng):
    for mode in _MODES:
        image = _in_mode(_picture(rng, 70, 50), mode)
        for form in ("PNG", "TIFF"):
            try:
                content = _encoded(image, form)
                Image.open(io.BytesIO(content)).load()
            except (OSError, KeyError, ValueError):  # This container has no such mode, or Pillow cannot read its own.
                continue
            yield f"{mode.replace(';', '')}.{form.lower()}", content


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("La", "RGBa"):
        return image.convert("LA" if mode == "La" else "RGBA").convert(mode)
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def _containers(rng):
    """Every container under the ending of another: what is inside counts, not the name."""
    for form in _FORMATS:
        image = _picture(rng, 64, 48)
        image = image.convert("P") if form == "GIF" else image
        yield f"really-{form.lower()}.png", _encoded(image, form)
    yield "progressive.jpg", _encoded(_picture(rng, 90, 60), "JPEG", progressive=True, quality=5)
    yield "cmyk.jpg", _encoded(_picture(rng, 90, 60).convert("CMYK"), "JPEG")
    yield "clear.gif", _encoded(_picture(rng, 30, 20).convert("P"), "GIF", transparency=3)
    yield "clear.png", _encoded(_picture(rng, 30, 20).convert("P"), "PNG", transparency=bytes(range(256)))
    yield "tiled.tiff", _encoded(_picture(rng, 90, 60), "TIFF", compression="tiff_deflate")


def _turned(rng):
    for orientation in (*range(10), 77):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"turned-{orientation}.jpg", _encoded(_picture(rng, 60, 40), "JPEG", exif=exif)
    yield "bad-exif.jpg", _encoded(_picture(rng, 60, 40), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")


def _animated(rng):
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        frames = [_picture(rng, 40, 30) for _ in range(4)]
        content = _encoded(frames[0], form, save_all=True, append_images=frames[1:])
        yield f"moving.{form.lower()}", content


def _lying():
    yield "empty.png", b""
    yield "one-byte.jpg", b"\xff"
    yield "text.png", b"This is no picture.\n" * 40
    yield "page.jpg", b"<!doctype html><title>404</title>"
    yield "vector.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    for width, height in ((0, 5), (5, 0), (100_000, 100_000), (2**31 - 1, 1), (30_000, 30_000)):
        yield f"says-{width}x{height}.png", _png(width, height)


def _png(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a size that its few bytes of data do not keep."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def _numbers(rng):
    """Pictures of numbers beyond the range of a picture."""
    for name, values in {
        "constant": np.full((20, 30), 3.5),
        "negative": rng.normal(0, 1e6, (20, 30)),
        "tiny": rng.random((20, 30)) * 1e-30,
        "nan": np.where(rng.random((20, 30)) < 0.1, np.nan, 1.0),
        "all-nan": np.full((20, 30), np.nan),
        "infinite": np.where(rng.random((20, 30)) < 0.1, np.inf, 1.0),
    }.items():
        yield f"{name}.tiff", _encoded(Image.fromarray(values.astype(np.float32)), "TIFF")


def _damaged(rng, contents):
    """Cut off, or with some bytes overwritten, for ever."""
    while True:
        content = bytearray(contents[rng.integers(len(contents))])
        ending = ("png", "jpg", "gif", "tiff", "webp")[rng.integers(5)]
        if rng.random() < 0.5:
            yield f"cut.{ending}", bytes(content[: rng.integers(1, len(content))])
        else:
            for place in rng.integers(0, len(content), rng.integers(1, 40)):
                content[place] = rng.integers(256)
            yield f"changed.{ending}", bytes(content)
