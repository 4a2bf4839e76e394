import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.visualization import (
    affinity_spotlight,
    eigenvector_image,
    eigenvector_sheet,
    eigenvectors_to_rgb,
    figure,
    pathways_figure,
    segment_colors,
    segmentation_overlay,
)


def photo(width=60, height=40):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def maps(count=5, height=6, width=9, seed=0):
    return torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed))


def lightness(color):
    return float(np.asarray(color, dtype=float) @ [0.2126, 0.7152, 0.0722])


def test_eigenvector_image_is_blue_white_red_around_zero():
    values = torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]])
    pixels = np.asarray(eigenvector_image(values))[0].astype(int)
    assert pixels.shape == (5, 3)
    assert pixels[2].min() > 230
    assert (pixels[:2, 2] > pixels[:2, 0]).all()
    assert (pixels[3:, 0] > pixels[3:, 2]).all()
    assert lightness(pixels[0]) < lightness(pixels[1]) < lightness(pixels[2])
    assert lightness(pixels[4]) < lightness(pixels[3]) < lightness(pixels[2])
    assert abs(lightness(pixels[1]) - lightness(pixels[3])) < 40


def test_eigenvector_image_ignores_scale_and_outliers():
    values = maps()[0].repeat(4, 4)
    plain = np.asarray(eigenvector_image(values)).astype(int)
    assert np.array_equal(plain, np.asarray(eigenvector_image(values * 1e-3)))
    spiked = values.clone()
    spiked[0, 0] = 1e6
    assert np.abs(np.asarray(eigenvector_image(spiked)).astype(int) - plain)[1:].mean() < 10


def test_sizes_are_height_then_width():
    assert eigenvector_image(maps()[0]).size == (9, 6)
    assert eigenvector_image(maps()[0], (40, 70)).size == (70, 40)
    assert eigenvectors_to_rgb(maps(), size=(40, 70)).size == (70, 40)
    assert eigenvectors_to_rgb(maps()).mode == "RGB"


def test_deterministic():
    values = torch.linspace(0, 0.5, 5)
    signs = torch.tensor([-1.0, -1, 1, -1, 1])[:, None, None]
    first = np.asarray(eigenvectors_to_rgb(maps(), values, (30, 45)))
    assert np.array_equal(first, np.asarray(eigenvectors_to_rgb(maps() * signs, values, (30, 45))))


def test_rgb_shows_each_of_the_three_eigenvectors_and_no_other():
    plain = np.asarray(eigenvectors_to_rgb(maps())).astype(int)
    assert plain.reshape(-1, 3).std(0).min() > 30
    for index, matters in enumerate([False, True, True, True, False]):
        changed = maps()
        changed[index] = maps(seed=1)[index]
        difference = np.abs(np.asarray(eigenvectors_to_rgb(changed)).astype(int) - plain).mean()
        assert (difference > 5) == matters


def test_rgb_with_eigenvalues_fades_weak_eigenvectors():
    plain = np.asarray(eigenvectors_to_rgb(maps())).astype(float)
    equal = np.asarray(eigenvectors_to_rgb(maps(), torch.full((5,), 0.1))).astype(float)
    weak = np.asarray(eigenvectors_to_rgb(maps(), torch.tensor([0.0, 0.1, 0.9, 0.9, 0.9]))).astype(float)
    assert np.array_equal(plain, equal)
    assert weak.reshape(-1, 3).std(0).sum() < 0.85 * plain.reshape(-1, 3).std(0).sum()


@pytest.mark.parametrize("count", [2, 3])
def test_rgb_of_few_or_constant_eigenvectors(count):
    assert eigenvectors_to_rgb(maps(count)).size == (9, 6)
    constant = np.asarray(eigenvectors_to_rgb(torch.full((count, 3, 4), 0.2), torch.zeros(count)))
    assert (constant == constant[0, 0]).all()
    assert eigenvector_image(torch.zeros(1, 1)).size == (1, 1)


def test_rgb_of_the_trivial_eigenvector_alone():
    with pytest.raises(SpectralError, match="`eigenvectors`: expected at least 2, got 1"):
        eigenvectors_to_rgb(maps(1))


def test_segment_colors_are_distinct_and_stable():
    colors = segment_colors(12).astype(float)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1000 * np.eye(12)
    assert apart.min() > 30
    assert np.array_equal(segment_colors(5), segment_colors(12)[:5])


def halves(height=40, width=60):
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[:, width // 2 :] = 1
    return labels


def test_overlay_tints_by_segment():
    image = photo()
    assert np.array_equal(segmentation_overlay(image, halves(), alpha=0.0, boundaries=False), np.asarray(image))
    flat = np.asarray(segmentation_overlay(image, halves(), alpha=1.0, boundaries=False))
    assert (flat[:, :30] == segment_colors(2)[0]).all()
    assert (flat[:, 30:] == segment_colors(2)[1]).all()
    mean = np.asarray(segmentation_overlay(image, halves(), alpha=1.0, fill="mean", boundaries=False)).astype(float)
    assert np.abs(mean[0, 0] - np.asarray(image)[:, :30].reshape(-1, 3).mean(0)).max() <= 0.5


def test_overlay_draws_thin_white_boundaries_where_labels_change():
    plain = np.asarray(segmentation_overlay(photo(), halves(), boundaries=False)).astype(int)
    lined = np.asarray(segmentation_overlay(photo(), halves())).astype(int)
    changed = (lined != plain).any((0, 2)).nonzero()[0]
    assert 1 <= len(changed) <= 3
    assert abs(changed.mean() - 30) <= 1
    assert lined[:, 30].min() > 200
    one = torch.zeros(40, 60, dtype=torch.int64)
    assert np.array_equal(segmentation_overlay(photo(), one), segmentation_overlay(photo(), one, boundaries=False))


def test_overlay_enlarges_labels_of_the_token_grid():
    small = segmentation_overlay(photo(), halves(4, 6))
    assert small.size == (60, 40)
    assert np.array_equal(small, segmentation_overlay(photo(), halves()))


def test_overlay_message():
    with pytest.raises(SpectralError, match="`alpha`: expected a number from 0 to 1, got 2"):
        segmentation_overlay(photo(), halves(), alpha=2.0)


def test_figure_lays_pictures_out_on_white_with_captions():
    black = Image.new("L", (30, 20))
    sheet = np.asarray(figure([[("one", black), ("two", black)], [("three", black)]], tile_width=90))
    dark = (sheet == 0).all(-1)
    columns = np.flatnonzero(np.diff(dark[:60].any(0).astype(int)))
    assert list(np.diff(columns)[[0, 2]]) == [90, 90]
    assert dark.sum() == 3 * 90 * 60
    assert (sheet[0] == 255).all()
    assert (sheet[:, 0] == 255).all()
    bare = np.asarray(figure([[("", black), ("", black)], [("", black)]], tile_width=90))
    assert bare.shape[0] < sheet.shape[0]
    ink = (sheet < 128).all(-1).sum() - dark.sum()
    assert ink > 20
    assert (bare < 128).all(-1).sum() == dark.sum()


def test_figure_message():
    with pytest.raises(SpectralError, match="`rows`: expected at least one image"):
        figure([[]])


def test_sheet_holds_the_photo_and_every_eigenvector_but_the_trivial_one():
    image, values = photo(), torch.linspace(0, 0.9, 5)
    sheet = eigenvector_sheet(image, maps(), values, columns=3, tile_width=90)
    tiles = [("", Image.new("RGB", image.size))] * 3
    expected = figure([[("a", tile) for _, tile in tiles], [("a", tile) for _, tile in tiles]], tile_width=90)
    assert sheet.size == expected.size
    other = maps()
    other[0] = 7
    assert np.array_equal(eigenvector_sheet(image, other, values, columns=3, tile_width=90), sheet)


def test_pathways_figure_sets_three_side_by_side():
    red, blue = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (60, 40), "blue")
    pixels = np.asarray(pathways_figure(photo(), red, blue, tile_width=120))
    middle = pixels[40]
    reds, blues = (np.flatnonzero((middle == color).all(-1)) for color in ([255, 0, 0], [0, 0, 255]))
    assert len(reds) == len(blues) == 120
    assert reds.max() < blues.min()
    with pytest.raises(ValueError, match="zip"):
        pathways_figure(photo(), red, blue, captions=("one",))


def test_colors_on_the_scale_of_a_dataset_depend_on_the_values_alone():
    """The same values give the same color beside any others; without a scale they do not."""
    values = maps()
    beside = torch.cat([values, 5 * maps(seed=3)], dim=2)
    with_scale = [np.asarray(eigenvectors_to_rgb(one, scale=0.8)) for one in (values, beside)]
    assert np.array_equal(with_scale[0], with_scale[1][:, :9])
    without = [np.asarray(eigenvectors_to_rgb(one)) for one in (values, beside)]
    assert not np.array_equal(without[0], without[1][:, :9])
    # A sign is part of what a dataset-level color means.
    assert not np.array_equal(with_scale[0], np.asarray(eigenvectors_to_rgb(-values, scale=0.8)))
    one = [np.asarray(eigenvector_image(part[1], bound=2.0)) for part in (values, beside)]
    assert np.array_equal(one[0], one[1][:, :9])


def test_spotlight_lights_related_tokens_and_marks_the_token():
    affinity = torch.full((4, 6), 0.01)
    affinity[:, 3:] = 1.0
    white = Image.new("RGB", (600, 400), "white")
    lit = np.asarray(affinity_spotlight(white, affinity)).astype(float)
    assert lit.shape == (400, 600, 3)
    assert lit[:, 450:].min() > 245
    assert lit[:, :200].max() < 90
    affinity[1, 4] = 1000.0  # To itself; it does not pale the others.
    marked = np.asarray(affinity_spotlight(white, affinity, (1, 4))).astype(float)
    changed = np.argwhere(np.abs(marked - lit).sum(2) > 0)
    assert np.abs(changed.mean(0) - [150, 450]).max() < 3
    assert len(changed) < 0.01 * lit.size


@pytest.mark.parametrize("token", [(4, 0), (0, -1)])
def test_spotlight_refuses_a_token_outside(token):
    with pytest.raises(SpectralError, match="a row and a column of 4 x 6"):
        affinity_spotlight(photo(), torch.ones(4, 6), token)


def test_spotlight_of_a_single_token_is_the_photo():
    assert affinity_spotlight(photo(), torch.ones(1, 1)).size == (60, 40)


def test_arrays_images_and_lists_are_drawn_as_tensors_are():
    """Rows of a dataset hold lists and PIL images; another library gives arrays."""
    vectors, values, labels = torch.randn(5, 4, 6), torch.linspace(0, 0.8, 5), halves(4, 6)
    drawings = (
        (eigenvectors_to_rgb, (vectors, values)),
        (lambda one, two: eigenvector_sheet(photo(), one, two), (vectors, values)),
        (eigenvector_image, (vectors[1],)),
        (lambda one: segmentation_overlay(photo(), one), (labels,)),
        (lambda one: affinity_spotlight(photo(), one), (vectors[1].abs(),)),
    )
    for draw, tensors in drawings:
        expected = np.asarray(draw(*tensors))
        for other in (Tensor.numpy, Tensor.tolist, Tensor.double):
            assert np.array_equal(draw(*map(other, tensors)), expected)
        with pytest.raises(SpectralError, match="dimensions"):
            draw(tensors[0][None], *tensors[1:])
        with pytest.raises(SpectralError, match="dimensions"):
            draw([[1.0], [1.0, 2.0]], *tensors[1:])
    picture = Image.fromarray(labels.numpy().astype(np.uint8))
    palette = picture.convert("P")
    palette.putdata(list(picture.getdata()))
    for one in (picture, palette):
        assert np.array_equal(segmentation_overlay(photo(), one), segmentation_overlay(photo(), labels))
    with pytest.raises(SpectralError, match="negative"):
        segmentation_overlay(photo(), -labels - 1)
