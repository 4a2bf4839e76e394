"""Pictures uploaded by visitors, and the examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from hf_spectral import SpectralError, read_image

#: Longer side at which a picture is analyzed and shown.
MAX_SIDE = 896
#: Pixels that are decoded at most: a small file can hold a picture of gigabytes.
MAX_PIXELS = 50_000_000
#: What Pillow may open: some of its other formats run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def upload() -> gr.Image:
    """Return the component for a visitor's picture, which says in a sentence why a file cannot be read."""
    picture = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        label="Your picture",
        height=230,
        elem_id="picture",
        format="png",  # Of an example that is put there: its pixels tell that its answer is known.
        buttons=[],
    )

    def preprocess(payload: Any) -> str | None:
        return None if payload is None else payload.path

    # Gradio's own would open the file, with a traceback where it is no picture; `open_picture` says what is wrong. Not
    # by a subclass: gradio writes a stub file beside the module of each subclass of a component.
    picture.preprocess = preprocess
    return picture


def check_file(path: str) -> None:
    """Reject a file that is not a picture or is too large, by reading its header.

    Args:
        path: Path of the file.

    Raises:
        SpectralError: If the file is rejected.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
    except Exception as error:  # Of any type: decoders raise struct.error, EOFError and others.
        is_bomb = isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning))
        raise SpectralError(
            "picture",
            expected="a JPEG, PNG, WebP, GIF, BMP or TIFF file",
            got="one of too many pixels" if is_bomb else "a file that is none of these",
            fix="Save it as JPEG and try again",
        ) from error
    if width * height > MAX_PIXELS:
        raise SpectralError(
            "picture",
            expected=f"at most {MAX_PIXELS // 1_000_000} megapixels",
            got=f"{width} x {height}",
            fix="Make it smaller first",
        )


def open_picture(path: str | None) -> Image.Image:
    """Return a picture upright, in RGB, its longer side at most `MAX_SIDE`.

    Args:
        path: Of the file; None if none was chosen.

    Returns:
        The picture.

    Raises:
        SpectralError: If there is none, or it cannot be read.
    """
    if path is None:
        raise SpectralError("picture", expected="a picture", got="none", fix="Upload one, or tap one of the examples")
    check_file(path)
    return fitted(read_image(path))


def fitted(picture: Image.Image) -> Image.Image:
    """Return a copy of a picture in RGB, its longer side at most `MAX_SIDE`.

    Args:
        picture: Of any mode.

    Returns:
        The copy.
    """
    copy = picture.convert("RGB")
    copy.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return copy


def examples() -> dict[str, Image.Image]:
    """Return the pictures that installed packages ship, by name."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    sources: dict[str, Callable[[], Any]] = {
        "pagoda": lambda: load_sample_image("china.jpg"),
        "cat": data.chelsea,
        "coffee": data.coffee,
        "astronaut": data.astronaut,
        "flower": lambda: load_sample_image("flower.jpg"),
        "rocket": data.rocket,
    }
    return {name: Image.fromarray(load()) for name, load in sources.items()}
