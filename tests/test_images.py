"""Pictures as they come: modes, orientation, damage."""

import numpy as np
import pytest
from PIL import Image

from hf_spectral import SpectralError
from hf_spectral.pipelines.images import InputGeometry, read_image

RED = (255, 0, 0)


def test_every_mode_becomes_rgb(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"):
        image = Image.new("RGB", (6, 4), RED).convert(mode) if mode != "I;16" else Image.new(mode, (6, 4), 40_000)
        found = read_image(image)
        assert found.mode == "RGB"
        assert found.size == (6, 4)


def test_sixteen_bits_keep_their_range():
    values = np.linspace(0, 65535, 24, dtype=np.uint16).reshape(4, 6)
    found = np.asarray(read_image(Image.fromarray(values)))[..., 0].astype(int)
    assert found[0, 0] == 0
    assert found[-1, -1] == 255
    assert (np.diff(found.ravel()) > 0).all()


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert read_image(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert read_image(palette).getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (6, 4), RED)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 6)


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif").getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 6), np.uint8),
        np.zeros((4, 6, 1), np.uint8),
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((4, 6, 3), np.uint16)[..., 0],
        np.zeros((4, 6, 3), np.float32),
    ],
)
def test_arrays(array):
    assert read_image(array).size == (6, 4)


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros(5, np.uint8), np.full((4, 4), 7.5)],
)
def test_arrays_that_are_no_picture_are_refused(array):
    with pytest.raises(SpectralError, match="got a ndarray"):
        read_image(array)


def test_damage_is_named_with_the_file(tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    with pytest.raises(SpectralError, match=r"text\.jpg' \(a file that is not a picture\)"):
        read_image(text)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(SpectralError, match=r"empty\.png"):
        read_image(str(empty))
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:900])
    with pytest.raises(SpectralError, match=r"cut\.jpg' \(.*truncated"):
        read_image(cut)
    with pytest.raises(SpectralError, match=r"missing\.jpg' \(no such file\)"):
        read_image(str(tmp_path / "missing.jpg"))
    with pytest.raises(SpectralError, match="a NoneType"):
        read_image(None)


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "big.png"
    Image.new("1", (300, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SpectralError, match="decompression bomb"):
        read_image(path)


def test_geometry_keeps_the_aspect_and_whole_patches():
    geometry = InputGeometry((14, 14), (518, 518), is_fixed=False, forward_arguments={})
    assert geometry.size_for(321, 481) == (350, 518)
    assert geometry.size_for(321, 481, 952) == (630, 952)
    assert geometry.size_for(1, 10_000) == (14, 518)
