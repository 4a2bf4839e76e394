"""Pictures as they come: modes, bits, orientation, damage, addresses."""

import base64
import contextlib
import http.server
import io
import struct
import threading
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from hf_spectral import SpectralError
from hf_spectral.families import sizes
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.pipelines import images
from hf_spectral.pipelines.images import read_image

RED = (255, 0, 0)
RAMP = np.random.default_rng(0).permutation(np.arange(256, dtype=np.uint8)).reshape(16, 16)
COLOR = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="rgb" if array.ndim == 3 else "minisblack", **options)
    return file.getvalue()


def wide_png(array):
    """A PNG of 16 bits in gray with alpha, RGB or RGBA, which Pillow does not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = array.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def assert_seen_as(source, truth):
    """Compare within one gray level."""
    expected = np.asarray(Image.fromarray(truth).convert("RGB")).astype(int)
    assert np.abs(np.asarray(read_image(source)).astype(int) - expected).max() <= 1


def test_every_mode_becomes_rgb(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"):
        image = Image.new("RGB", (6, 4), RED).convert(mode) if mode != "I;16" else Image.new(mode, (6, 4), 40_000)
        found = read_image(image)
        assert found.mode == "RGB"
        assert found.size == (6, 4)


@pytest.mark.parametrize("bits", range(8, 17))
def test_more_than_eight_bits_are_seen_as_their_copy_of_eight(bits):
    gray, color = ((picture / 255 * (2**bits - 1)).round().astype(np.uint16) for picture in (RAMP, COLOR))
    opaque = np.full((16, 16, 1), 65535, np.uint16)
    for kind in (np.uint16, ">u2", np.int32, np.int64, np.float32, np.float64):
        assert_seen_as(gray.astype(kind), RAMP)
        assert_seen_as(color.astype(kind), COLOR)
    image = Image.fromarray(gray)
    big = tiff(gray, byteorder=">")
    for source in (image, encoded(image, "PNG"), encoded(image, "TIFF"), big, Image.open(io.BytesIO(big))):
        assert_seen_as(source, RAMP)
    for kind in (np.int32, np.float32):
        assert_seen_as(Image.fromarray(gray.astype(kind)), RAMP)
        assert_seen_as(encoded(Image.fromarray(gray.astype(kind)), "TIFF"), RAMP)
    assert_seen_as(wide_png(np.concatenate([gray[..., None], opaque], axis=2)), RAMP)
    assert_seen_as(wide_png(color), COLOR)
    assert_seen_as(wide_png(np.concatenate([color, opaque], axis=2)), COLOR)
    assert_seen_as(Image.open(io.BytesIO(wide_png(color))), COLOR)
    for options in ({}, {"byteorder": ">"}, {"compression": "zlib"}):
        assert_seen_as(tiff(color, **options), COLOR)


def test_a_wide_color_file_is_turned_and_a_planar_one_refused():
    wide = COLOR.astype(np.uint16) * 16
    turned = tiff(wide, extratags=[(274, "H", 1, 3, True)])
    assert_seen_as(turned, COLOR[::-1, ::-1])
    with pytest.raises(SpectralError, match="channels apart"):
        read_image(tiff(np.moveaxis(wide, 2, 0).copy(), planarconfig="separate"))


@pytest.mark.parametrize("low", [0.0, 0.4])
def test_floats_are_one_rule_in_arrays_and_images(low):
    values = (low + (1 - 2 * low) * RAMP / 255).astype(np.float32)
    truth = (values * 255).round().astype(np.uint8)
    for source in (values, Image.fromarray(values), encoded(Image.fromarray(values), "TIFF")):
        assert_seen_as(source, truth)
    assert_seen_as(np.concatenate([COLOR / 255, np.ones((16, 16, 1))], axis=2), COLOR)


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([[False, True]], [0, 255]),
        ([[0, 1]], [0, 1]),
        ([[-1.0, 0.0, 1.0]], [0, 128, 255]),
        ([[-1000, 3000]], [0, 255]),
        ([[-3, -3]], [0, 0]),
        ([[0.0, 1.02]], [0, 255]),
        ([[0.0, 5.0, 10.0]], [0, 128, 255]),
        ([[7.5, 7.5]], [255, 255]),
        ([[0, 2**30, 2**31 - 1]], [0, 128, 255]),
        ([[-1e308, 1e308]], [0, 255]),
        ([[0.0, 1e-320]], [0, 0]),
    ],
)
def test_numbers_beyond_a_picture(values, seen):
    assert np.asarray(read_image(np.array(values)))[0, :, 0].tolist() == seen


def test_transparency_of_any_numbers_is_the_same():
    half = np.concatenate([COLOR, np.full((16, 16, 1), 128, np.uint8)], axis=2)
    truth = np.asarray(read_image(half))
    wide = half.astype(np.uint16) * 257
    for source in (half / 255, wide, wide_png(wide), encoded(Image.fromarray(half))):
        assert_seen_as(source, truth)


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
        np.zeros((3, 4, 6), np.float16),
        np.zeros((1, 4, 6), bool),
        torch.zeros((3, 4, 6)),
    ],
)
def test_arrays(array):
    assert read_image(array).size == (6, 4)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros(5, np.uint8), "shape"),
        (np.zeros((4, 4), complex), "complex128"),
        (np.full((2, 4), np.nan), "NaN or infinity in 8 of 8 numbers"),
        (np.array([[0.0, -np.inf]]), "NaN or infinity in 1 of 2 numbers"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array, reason):
    with pytest.raises(SpectralError, match=rf"got a ndarray \(.*{reason}"):
        read_image(array)


def test_pil_images_that_hold_no_pixels_are_refused(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with pytest.raises(SpectralError, match="whose file was closed"):
        read_image(closed)
    gone = Image.new("RGB", (3, 3))
    gone.close()
    for image in (gone, Image.new("RGB", (0, 3))):
        with pytest.raises(SpectralError, match="closed|0 x 3 pixels"):
            read_image(image)


class Site(http.server.BaseHTTPRequestHandler):
    """Pictures, and what else comes back from an address."""

    def do_GET(self):
        photo = encoded(Image.fromarray(COLOR))
        path = self.path.partition("?")[0]
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/photo.png")
            return self.end_headers()
        if path in ("/404", "/500"):
            return self.send_error(int(path[1:]))
        body = {"/page": b"<!doctype html>", "/empty": b"", "/cut": photo[:200]}.get(path, photo)
        self.send_response(200)
        if path not in ("/endless", "/dripping"):
            self.send_header("Content-Length", str({"/vast": 10**12, "/broken": 999}.get(path, len(body))))
        self.end_headers()
        if path == "/slow":
            threading.Event().wait(0.6)
        with contextlib.suppress(OSError):  # The other side has had enough.
            for _ in range({"/endless": 100, "/dripping": 40}.get(path, 1)):
                self.wfile.write(body)
                threading.Event().wait(0.05 if path == "/dripping" else 0)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def site():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_of_every_kind_are_read(site, tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a b.png")
    text = base64.b64encode(encoded(Image.fromarray(COLOR))).decode()
    plain = "".join(f"%{byte:02x}" for byte in encoded(Image.fromarray(COLOR)))
    long = "a" * 5000
    for source in (
        f"{site}/photo.png",
        f"HTTP{site[4:]}/moved",
        f"{site}/photo.png?X-Amz-Signature={long}",
        f"data:image/png;base64,{text}",
        f"DATA:;base64,{text.replace('+', '%2B')}",
        f"data:image/png,{plain}",
        (tmp_path / "a b.png").as_uri(),
        bytearray(encoded(Image.fromarray(COLOR))),
        {"bytes": None, "path": str(tmp_path / "a b.png")},
    ):
        assert_seen_as(source, COLOR)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("SITE/404", r"\(HTTP 404 Not Found\)"),
        ("SITE/500?token=secret", r"/500\?\.\.\.' \(HTTP 500 Internal Server Error\)"),
        ("http://user:secret@127.0.0.1:9/a.png", r"'http://127\.0\.0\.1:9/a\.png' \(.*refused"),
        ("SITE/page", "not a picture"),
        ("SITE/empty", "not a picture"),
        ("SITE/cut", "truncated"),
        ("SITE/broken", r"\("),
        ("SITE/vast", "1000000000000 bytes"),
        ("SITE/slow", r"\(.*(timed out|[Tt]imeout)"),
        ("http://[", r"\("),
        ("http://", r"\("),
        ("http://a\nb/", r"\("),
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,abc", r"'data:image/png;base64,\.\.\.' \(.*padding"),
        ("data:image/svg+xml,<svg/>", "not a picture"),
        ("s3://secret@bucket/a.png", r"'s3://bucket/a\.png' \(neither a file nor a URL"),
        ("file:///nowhere/a.png", "no such file"),
        ("a\0b", "null"),
        ("a" * 5000, "name too long"),
        ("/tmp/\udcff.png", "no such file"),
        ("", "no such file"),
    ],
)
def test_addresses_that_give_no_picture_are_named_without_secrets(site, source, reason):
    with pytest.raises(SpectralError, match=reason) as caught:
        read_image(source.replace("SITE", site), timeout=0.2 if source.endswith("slow") else 20)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_a_body_of_no_announced_size_is_bounded_in_bytes_and_time(site, monkeypatch):
    with pytest.raises(SpectralError, match=r"not complete after 0\.4 s"):
        read_image(f"{site}/dripping", timeout=0.4)
    monkeypatch.setattr(images, "_MAX_DOWNLOAD", 2000)
    assert_seen_as(f"{site}/photo.png", COLOR)
    with pytest.raises(SpectralError, match="more than 2000 bytes"):
        read_image(f"{site}/endless")
    with pytest.raises(SpectralError, match="timeout=-1, which is not above 0"):
        read_image(f"{site}/photo.png", timeout=-1)


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


def test_geometry_refuses_more_tokens_than_memory_holds(monkeypatch):
    geometry = InputGeometry((14, 14), (518, 518), is_fixed=False, forward_arguments={})
    assert geometry.size_for(1, 1, 14 * 256) == (14 * 256, 14 * 256)
    for resolution in (14 * 260, 1_000_000, 10**400):
        with pytest.raises(SpectralError, match=r"`resolution`: expected at most 65536 tokens per picture.*or less"):
            geometry.size_for(1, 1, resolution)
    assert geometry.size_for(1, 100, 14 * 2000) == (14 * 20, 14 * 2000)
    monkeypatch.setattr(sizes, "MAX_TOKENS", 2**17)
    assert geometry.size_for(1, 1, 14 * 260) == (14 * 260, 14 * 260)
