import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score

from hf_spectral import SpectralError
from hf_spectral.segmentation import Segmentation, instances, segment
from hf_spectral.segmentation.region_tree import _merged, as_picture, enlarged, region_tree

COLORS = np.array(
    [[200, 40, 40], [40, 160, 60], [50, 70, 200], [230, 200, 40], [150, 60, 170], [40, 180, 190],
     [240, 140, 40], [120, 80, 40], [230, 230, 230], [30, 30, 30], [250, 150, 190], [130, 140, 60]]
)  # fmt: skip


def fields(height, width, rows=3, columns=4):
    """Numbers of the fields of a checkerboard."""
    down, right = np.arange(height) * rows // height, np.arange(width) * columns // width
    return down[:, None] * columns + right


def checkerboard(height=312, width=420, noise=20.0, seed=0):
    """A picture of twelve colors, 3 x 4 fields, with noise on every pixel."""
    random = np.random.default_rng(seed)
    pixels = COLORS[fields(height, width)] + noise * random.standard_normal((height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def eigenvectors_of(truth, grid, noise=0.03, seed=0):
    """Eigenvectors that are constant on the regions of a picture and mixed in tokens that two regions share."""
    random = np.random.default_rng(seed)
    count = truth.max() + 1
    levels = np.linalg.qr(random.standard_normal((count, count)))[0]
    rows, columns = grid
    shares = np.stack(
        [(truth == one).reshape(rows, truth.shape[0] // rows, columns, -1).mean((1, 3)) for one in range(count)]
    )
    maps = np.einsum("sc,shw->chw", levels, shares) + noise * random.standard_normal((count, rows, columns))
    maps = np.concatenate([np.ones((1, rows, columns)), maps]).astype(np.float32)
    maps /= np.linalg.norm(maps.reshape(len(maps), -1), axis=1)[:, None, None]
    return torch.from_numpy(maps), torch.linspace(0, 0.5, len(maps))


def nested(fine, coarse):
    return len(np.unique(fine * (coarse.max() + 1) + coarse)) == fine.max() + 1


def twelve(grid=(26, 35)):
    picture = checkerboard()
    truth = fields(picture.height, picture.width)
    return picture, truth, segment(*eigenvectors_of(truth, grid), image=picture, num_segments=12)


def test_twelve_colors_are_twelve_segments_without_slivers():
    # Fields of 105 x 104 pixels on tokens of 12: a border runs through the middle of tokens, which mix both sides.
    _, truth, found = twelve()
    assert found.num_segments == 12
    labels = found.labels.numpy()
    assert adjusted_rand_score(labels.ravel(), truth.ravel()) > 0.97
    for one in range(12):
        mask = labels == one
        assert ndimage.label(mask)[1] == 1
        assert ndimage.distance_transform_edt(np.pad(mask, 1)).max() > 24  # A strip of two tokens has 12 in its middle.
        opened = ndimage.binary_opening(mask, np.ones((24, 24)))
        assert opened.sum() > 0.9 * mask.sum()


def test_token_ward_has_slivers_there():
    _, truth, found = twelve()
    maps, values = eigenvectors_of(truth, (26, 35))
    ward = segment(maps, values, num_segments=12, size=truth.shape)
    assert adjusted_rand_score(ward.labels.numpy().ravel(), truth.ravel()) < adjusted_rand_score(
        found.labels.numpy().ravel(), truth.ravel()
    )


def test_every_number_of_segments_is_nested_in_every_smaller_one():
    picture, _, found = twelve()
    fine = None
    for count in range(50, 0, -1):
        labels = found.at(count).labels.numpy()
        assert labels.shape == (picture.height, picture.width)
        areas = np.bincount(labels.ravel())
        assert len(areas) == found.at(count).num_segments == count
        assert (np.diff(areas) <= 0).all()
        assert areas.min() > 0
        assert fine is None or nested(fine, labels)
        fine = labels
    assert torch.equal(found.at(12).labels, found.labels)
    assert torch.equal(found.at(12).scores, found.scores)
    assert ((found.scores > 0.5) & (found.scores <= 1)).all()
    assert found.at(1).scores.tolist() == [1.0]


def test_a_threshold_leaves_out_the_merges_that_cost_as_much():
    _, _, found = twelve()
    heights = np.sort(found.tree.heights)
    assert found.at(threshold=heights[-5]).num_segments == 6
    assert found.at(threshold=np.nextafter(heights[-5], np.inf)).num_segments == 5
    assert found.at(threshold=heights[-1] + 1).num_segments == 1
    assert found.at(threshold=0.0).num_segments == len(found.tree.features)


def test_merging_equals_the_definition():
    random = np.random.default_rng(3)
    features, areas = random.standard_normal((9, 3)), random.uniform(1, 3, 9)
    areas /= areas.sum()
    pairs = np.array([(i, j) for i in range(9) for j in range(i + 1, 9) if j - i in (1, 3)])
    lengths, contrasts = random.integers(1, 9, len(pairs)), random.uniform(1, 5, len(pairs))
    order, heights = _merged(features, areas, pairs, lengths, contrasts)
    regions, expected = [frozenset([i]) for i in range(9)], []

    def mean_and_area(region):
        members = list(region)
        return np.average(features[members], axis=0, weights=areas[members]), areas[members].sum()

    def price(first, second):
        border = [(length, c) for (i, j), length, c in zip(pairs, lengths, contrasts, strict=True) if
                  (i in first and j in second) or (j in first and i in second)]  # fmt: skip
        if not border:
            return np.inf
        (m, a), (n, b) = mean_and_area(first), mean_and_area(second)
        return a * b / (a + b) * ((m - n) ** 2).sum() * sum(c for _, c in border) / sum(length for length, _ in border)

    height = 0.0
    while len(regions) > 1:
        cost, first, second = min(
            ((price(a, b), i, j) for i, a in enumerate(regions) for j, b in enumerate(regions) if i < j)
        )
        height = max(height, cost)
        union = regions[first] | regions[second]
        expected.append((height, union))
        regions = [one for i, one in enumerate(regions) if i not in (first, second)] + [union]
    position = np.argsort(order)
    for height, union in expected:
        low, high = min(position[list(union)]), max(position[list(union)])
        assert high - low + 1 == len(union)
        assert heights[low:high].max() == pytest.approx(height)
    assert len(np.unique(heights)) == 8


def test_borders_lie_on_the_edges_of_the_picture_and_not_on_those_of_tokens():
    truth = np.zeros((120, 160), dtype=np.int64)
    truth[:, 75:] = 1  # Tokens of 10 pixels: the border runs through the middle of one.
    pixels = np.where(truth[..., None] == 1, 190, 60) + np.random.default_rng(0).normal(0, 8, (120, 160, 3))
    picture = pixels.clip(0, 255).astype(np.uint8)
    found = segment(*eigenvectors_of(truth, (12, 16)), image=picture, num_segments=2).labels.numpy()
    assert (found != found[0, 0]).astype(int).argmax(1) == pytest.approx(75, abs=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (7, 300), (31, 33)])
@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (3, 5)])
def test_pictures_of_any_size(size, grid):
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    maps = torch.from_numpy(random.standard_normal((3, *grid)).astype(np.float32))
    for number in ("auto", 1, grid[0] * grid[1]):
        found = segment(maps, torch.tensor([0.0, 0.1, 0.2]), image=picture, num_segments=number)
        assert found.labels.shape == size
        assert found.num_segments >= 1
        assert found.contour_map().size == size[::-1]


@pytest.mark.parametrize("size", [(312, 420), (31, 500), (700, 29)])
def test_drawn_maps_are_the_segments_of_superpixels(size):
    picture, truth, _ = twelve()
    found = segment(*eigenvectors_of(truth, (26, 35)), image=picture, num_segments=300, size=size)
    atoms = enlarged(found.tree.atoms, size)
    for count in (1, 5, 64, 65, 256, 257, 300):
        expected = found.tree.cut(count)[atoms]
        one = found.at(count)
        assert np.array_equal(one.labels.numpy(), expected)
        assert one.to_image().mode == ("P" if count <= 256 else "I;16")
        assert np.array_equal(np.asarray(one.to_image()), expected)


def test_a_picture_of_one_color_and_eigenvectors_without_structure():
    picture = Image.new("RGB", (40, 30), "gray")
    found = segment(torch.full((3, 4, 5), 0.3), torch.tensor([0.0, 0.1, 0.2]), image=picture)
    assert found.num_segments == 1
    assert found.labels.shape == (30, 40)


def test_large_pictures_are_labeled_to_the_pixel():
    picture = checkerboard().resize((1680, 1248))
    found = segment(*eigenvectors_of(fields(312, 420), (26, 35)), image=picture, num_segments=12)
    assert found.labels.shape == (1248, 1680)
    assert adjusted_rand_score(found.labels[::4, ::4].numpy().ravel(), fields(312, 420).ravel()) > 0.96
    assert max(found.tree.atoms.shape) <= 512


def test_the_contour_map_holds_every_number_of_segments():
    _, _, found = twelve()
    bright = np.asarray(found.contour_map())
    assert bright.shape == tuple(found.labels.shape)
    assert bright.max() == 255
    heights = np.sort(found.tree.heights)
    for count in (2, 5, 12):
        labels = found.at(count).labels.numpy()
        edge = np.zeros(labels.shape, dtype=bool)
        edge[1:] |= labels[1:] != labels[:-1]
        edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        least = np.rint(255 * (heights[-(count - 1)] / heights[-1]) ** 0.25)
        assert (bright[edge] >= least).all()
        assert (bright[~edge] <= least).all()


@pytest.mark.parametrize("method", ["tree", "ward"])
def test_saved_and_loaded(method, tmp_path):
    picture, truth, _ = twelve()
    found = segment(*eigenvectors_of(truth, (26, 35)), image=picture, method=method, num_segments=7)
    assert found.save_pretrained(tmp_path) == tmp_path
    assert (tmp_path / "segmentation.safetensors").is_file()
    again = Segmentation.from_pretrained(tmp_path)
    assert torch.equal(again.labels, found.labels)
    assert torch.equal(again.scores, found.scores)
    assert again.num_segments == 7
    if method == "tree":
        for count in (1, 3, 40):
            assert torch.equal(again.at(count).labels, found.at(count).labels)
        assert again.contour_map().tobytes() == found.contour_map().tobytes()


@pytest.mark.parametrize("damage", ["count", "atoms", "heights", "nan", "format", "size", "missing"])
def test_a_damaged_file_is_refused(damage, tmp_path):
    _, _, found = twelve()
    file = tmp_path / "one.safetensors"
    found.save_pretrained(file)
    tensors = load_file(file)
    described = {"format": "hf_spectral.Segmentation/1", "num_segments": 12, "size": [312, 420]}
    if damage == "count":
        described["num_segments"] = 10**6
    elif damage == "atoms":
        tensors["atoms"][0, 0] = 10**6
    elif damage == "heights":
        tensors["heights"][1] = tensors["heights"][0]
    elif damage == "nan":
        tensors["features"][0, 0] = torch.nan
    elif damage == "format":
        described["format"] = "other"
    elif damage == "size":
        described["size"] = [312, 10**9]
    else:
        del tensors["features"]
    save_file(tensors, file, metadata={"hf_spectral": json.dumps(described)})
    with pytest.raises(SpectralError, match=r"`source`: expected a file that Segmentation\.save_pretrained wrote"):
        Segmentation.from_pretrained(file)


def test_messages():
    picture, truth, found = twelve()
    maps, values = eigenvectors_of(truth, (26, 35))
    with pytest.raises(SpectralError, match="`image`: expected the picture, along whose edges method='tree' cuts"):
        segment(maps, values, method="tree")
    with pytest.raises(SpectralError, match="`image`: expected a PIL image, or an array of bytes"):
        segment(maps, values, image=np.zeros((4, 5, 3)))
    with pytest.raises(SpectralError, match="`num_segments`: expected this or `threshold`"):
        found.at()
    with pytest.raises(SpectralError, match="`num_segments`: expected at most the number of superpixels"):
        found.at(100_000)
    with pytest.raises(SpectralError, match="`threshold`"):
        found.at(threshold=-1.0)
    with pytest.raises(SpectralError, match="`method`: expected 'tree', which gives every number of segments"):
        segment(maps, values, image=picture, method="ward").at(3)


def test_gray_and_transparent_pictures_are_read():
    for mode in ("L", "RGBA", "P", "1"):
        assert as_picture(checkerboard(60, 80).convert(mode)).mode == "RGB"


def test_the_tree_lists_its_regions():
    picture, truth, _ = twelve()
    embedding = np.random.default_rng(0).standard_normal((4, 2))
    tree = region_tree(embedding, (2, 2), picture, num_atoms=20)
    regions = {tuple(one) for one in tree.regions().tolist()}
    count = len(tree.features)
    assert len(regions) == 2 * count - 1
    for number in range(1, count + 1):
        segments = tree.cut(number)
        for one in range(number):
            members = np.flatnonzero(segments == one)
            assert (members[0], members[-1] + 1) in regions


def test_masks_of_instances_follow_the_edges_of_the_picture():
    rows, columns = np.mgrid[:240, :320]
    discs = [(rows - 83) ** 2 + (columns - 85) ** 2 <= 41**2, (rows - 147) ** 2 + (columns - 228) ** 2 <= 53**2]
    truth = discs[0] + 2 * discs[1]
    pixels = COLORS[truth] + np.random.default_rng(0).normal(0, 8, (240, 320, 3))
    picture = pixels.clip(0, 255).astype(np.uint8)
    maps, values = eigenvectors_of(truth, (24, 32))
    found, tokens = instances(maps, values, image=picture), instances(maps, values, size=(240, 320))
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)

    def iou(candidates, mask):
        return max(float((one.mask.numpy() & mask).sum() / (one.mask.numpy() | mask).sum()) for one in candidates[:2])

    for mask in discs:
        assert iou(found, mask) > 0.95
        assert iou(found, mask) > iou(tokens, mask)
    for one in found:
        assert one.mask.shape == (240, 320)
        borders = one.mask[0].any(), one.mask[-1].any(), one.mask[:, 0].any(), one.mask[:, -1].any()
        assert sum(map(int, borders)) < 2
