import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.cluster import AgglomerativeClustering
from sklearn.feature_extraction.image import grid_to_graph
from sklearn.metrics import adjusted_rand_score

from hf_spectral import SpectralConfig, build_problem, solve
from hf_spectral.errors import SpectralError
from hf_spectral.segmentation import instances, segment, spectral_embedding, upsample
from hf_spectral.segmentation.instances import _mask_silhouettes
from hf_spectral.segmentation.partition import _ward_labels
from tests.synthetic import planted_record, three_blobs


def planted(labels, channels=4, noise=0.05, seed=0):
    """Eigenvectors that are constant on planted regions up to noise, the trivial one first."""
    labels = torch.as_tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randn(int(labels.max()) + 1, channels, generator=generator)
    maps = levels[labels].permute(2, 0, 1) + noise * torch.randn(channels, *labels.shape, generator=generator)
    maps = torch.cat([torch.ones(1, *labels.shape), maps])
    return maps / maps.flatten(1).norm(dim=1)[:, None, None], torch.linspace(0, 0.6, channels + 1)


def quarters(height=12, width=16):
    labels = np.zeros((height, width), dtype=np.int64)
    labels[: height // 2, width // 3 :] = 1
    labels[height // 2 :, : width // 2] = 2
    labels[height // 2 :, width // 2 :] = 3
    return labels


def disc(height, width, row, column, radius):
    rows, columns = np.mgrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def same(first, second):
    return adjusted_rand_score(np.ravel(first), np.ravel(second)) == 1


def test_embedding_drops_the_trivial_one_and_scales():
    maps = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    embedding = spectral_embedding(maps, torch.tensor([0.0, 0.25, 0.5, 1.5]))
    assert embedding.shape == (15, 3)
    assert torch.allclose(embedding[7], maps[1:, 1, 2] * torch.tensor([0.75, 0.5, 0.0]))


@pytest.mark.parametrize("method", ["ward", "kmeans"])
@pytest.mark.parametrize("number", [4, "auto"])
def test_planted_partition_is_found(method, number):
    truth = quarters()
    found = segment(*planted(truth), num_segments=number, method=method)
    assert found.num_segments == 4
    assert same(found.labels, truth)
    assert found.scores.shape == (4,)
    assert found.scores.min() > 0.5


@pytest.mark.parametrize("number", [2, 5, 9])
def test_ward_equals_scikit_learn(number):
    maps, values = planted(quarters(), noise=0.6)
    embedding = spectral_embedding(maps, values).double().numpy()
    expected = AgglomerativeClustering(number, connectivity=grid_to_graph(12, 16)).fit_predict(embedding)
    assert same(_ward_labels(embedding, (12, 16), number, 0.25, 20), expected)
    threshold = 0.2 * np.linalg.norm(embedding)
    model = AgglomerativeClustering(None, distance_threshold=threshold, connectivity=grid_to_graph(12, 16))
    assert same(_ward_labels(embedding, (12, 16), None, 0.2, 192), model.fit_predict(embedding))


def test_labels_are_numbered_by_area_without_gaps():
    found = segment(*planted(quarters(), noise=0.8), num_segments=7, size=(60, 80))
    areas = torch.bincount(found.labels.flatten(), minlength=found.num_segments)
    assert found.labels.shape == (60, 80)
    assert (areas > 0).all()
    assert (areas[:-1] >= areas[1:]).all()
    assert len(areas) == len(found.scores) == found.num_segments
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_scores_tell_a_clear_segment_from_a_blurred_one():
    truth = np.repeat(np.arange(3), 6)[None].repeat(8, 0)
    levels = torch.tensor([[0.0], [0.1], [1.0]])
    noise = 0.05 * torch.randn(8, 18, generator=torch.Generator().manual_seed(3))
    maps = torch.stack([torch.ones(8, 18), levels[truth, 0] + noise])
    found = segment(maps, torch.tensor([0.0, 0.1]), num_segments=3)
    scores = {round(float(maps[1][found.labels == i].mean()), 1): float(found.scores[i]) for i in range(3)}
    assert scores[1.0] > 0.9 > scores[0.1]


@pytest.mark.parametrize("size", [(37, 53), (5, 4), (8, 9), (1, 1), (400, 3)])
def test_upsample_equals_bilinear_then_argmin(size, monkeypatch):
    distances = torch.rand(6, 8, 9, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.interpolate(distances[None], size, mode="bilinear", align_corners=False)[0]
    monkeypatch.setattr("hf_spectral.segmentation.upsampling._STRIP_VALUES", 700)
    labels = upsample(distances, size)
    chosen = whole.gather(0, labels[None])[0]
    assert torch.allclose(chosen, whole.min(0).values, atol=1e-6)
    assert (labels == whole.argmin(0)).float().mean() > 0.99


def test_boundary_falls_between_tokens_and_not_on_patch_sides():
    # A ramp whose second token lies a quarter of the way: the boundary leaves the side between two patches.
    maps = torch.stack([torch.ones(1, 6), torch.tensor([[0.0, 0.0, 0.25, 1.0, 1.0, 1.0]])])
    soft = segment(maps, torch.tensor([0.0, 0.0]), num_segments=2, size=(1, 60)).labels[0]
    first_right = int((soft == soft[-1]).nonzero()[0])
    assert first_right != 30
    assert 25 < first_right < 35


def test_look_alikes_far_apart_keep_their_own_labels():
    truth = np.zeros((16, 48), dtype=np.int64)
    left, right = disc(16, 48, 8, 8, 5), disc(16, 48, 8, 39, 5)
    truth[left | right] = 1
    found = segment(*planted(truth, noise=0.2), num_segments=3, size=(160, 480))
    first = set(found.labels[:, :200].unique().tolist()) - {0}
    second = set(found.labels[:, 280:].unique().tolist()) - {0}
    assert len(first) == len(second) == 1
    assert first != second
    assert found.scores.min() > 0.3  # a look-alike that does not touch is no rival


def test_crumbs_are_absorbed_when_the_number_is_automatic():
    truth = np.zeros((60, 60), dtype=np.int64)
    truth[:, 30:] = 1
    maps, values = planted(truth)
    maps[:, 20, 10] = 40 * maps[:, 20, 10].abs().max()  # an outlier token
    automatic = segment(maps, values, threshold=0.1)
    assert torch.bincount(automatic.labels.flatten()).min() >= 3
    assert automatic.labels[20, 10] == automatic.labels[20, 9]
    assert torch.bincount(segment(maps, values, num_segments=3).labels.flatten()).min() == 1


@pytest.mark.parametrize("method", ["ward", "kmeans"])
@pytest.mark.parametrize("number", [5, "auto"])
def test_deterministic(method, number):
    maps, values = planted(quarters(), noise=0.5)
    first, second = (segment(maps, values, num_segments=number, method=method, size=(50, 70)) for _ in range(2))
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.scores, second.scores)
    one, two = (instances(maps, values, size=(50, 70)) for _ in range(2))
    assert len(one) == len(two)
    assert all(torch.equal(a.mask, b.mask) and a.score == b.score for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("method", ["ward", "kmeans"])
@pytest.mark.parametrize("number", [5, "auto"])
def test_signs_of_eigenvectors_do_not_matter(method, number):
    maps, values = planted(quarters(), noise=0.5)
    signs = torch.tensor([-1.0, 1, -1, 1, -1])[:, None, None]
    settings = {"num_segments": number, "method": method}
    first, second = segment(maps, values, **settings), segment(maps * signs, values, **settings)
    assert torch.equal(first.labels, second.labels)


@pytest.mark.parametrize("method", ["ward", "kmeans"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (1, 7), (7, 1), (3, 3)])
def test_constant_maps_are_one_segment(method, grid):
    maps = torch.full((3, *grid), 0.3)
    found = segment(maps, torch.tensor([0.0, 0.1, 0.2]), method=method, size=(9, 11))
    assert found.num_segments == 1
    assert found.scores.tolist() == [1.0]
    assert (found.labels == 0).all()
    asked = segment(maps, torch.tensor([0.0, 0.1, 0.2]), num_segments=grid[0] * grid[1], method=method)
    assert asked.num_segments >= 1
    assert isinstance(instances(maps, torch.tensor([0.0, 0.1, 0.2])), list)


@pytest.mark.parametrize("method", ["ward", "kmeans"])
@pytest.mark.parametrize("grid", [(1, 9), (9, 1)])
def test_lines_of_tokens(method, grid):
    maps = torch.stack([torch.ones(9), torch.tensor([0.0, 0, 0, 0, 5, 5, 5, 9, 9.01])]).reshape(2, *grid)
    found = segment(maps, torch.tensor([0.0, 0.1]), num_segments=3, method=method)
    assert found.labels.flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]


def test_every_token_its_own_segment():
    maps, values = planted(quarters(4, 6), noise=1.0)
    assert segment(maps, values, num_segments=24).num_segments == 24


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision(dtype):
    maps, values = planted(quarters())
    assert same(segment(maps.to(dtype), values.to(dtype), num_segments=4).labels, quarters())


def test_automatic_number_is_bounded():
    maps, values = planted(quarters(), noise=3.0)
    assert segment(maps, values, threshold=0.0, max_auto_segments=6).num_segments <= 6


def test_memory_stays_bounded_at_photo_size():
    distances = torch.rand(20, 30, 40, generator=torch.Generator().manual_seed(0))
    with torch.profiler.profile(profile_memory=True) as profile:
        upsample(distances, (3000, 400))
    events = [event.self_cpu_memory_usage for event in profile.events()]
    dense = 20 * 3000 * 400 * 4
    assert max(events) < dense / 2


def test_instances_find_objects_and_leave_out_background():
    truth = np.zeros((24, 32), dtype=np.int64)
    objects = [disc(24, 32, 8, 8, 4), disc(24, 32, 14, 23, 5)]
    for index, mask in enumerate(objects):
        truth[mask] = index + 1
    found = instances(*planted(truth), size=(48, 64))
    assert all(one.mask.shape == (48, 64) and 0 <= one.score <= 1 for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for mask in objects:
        large = torch.from_numpy(ndimage.zoom(mask, 2, order=0))
        best = max(float((one.mask & large).sum() / (one.mask | large).sum()) for one in found[:2])
        assert best > 0.85
    for one in found:
        borders = one.mask[0].any(), one.mask[-1].any(), one.mask[:, 0].any(), one.mask[:, -1].any()
        assert sum(map(int, borders)) < 2


def test_a_piece_of_background_beside_an_object_scores_less_than_the_object():
    truth = disc(16, 16, 8, 6, 3).astype(np.int64)
    piece = np.zeros((16, 16), dtype=bool)
    piece[6:11, 10:12] = True  # background that touches the disc on one side
    masks = np.stack([truth == 1, piece]).reshape(2, -1)
    embedding = spectral_embedding(*planted(truth)).double().numpy()
    scores = _mask_silhouettes(embedding, masks, (16, 16))
    assert scores[0] > 0.9
    assert scores[1] < 0.6
    for mask, score in zip(masks, scores, strict=True):
        rows = [divmod(i, 16) for i in np.flatnonzero(mask)]
        near = [any(max(abs(r - a), abs(c - b)) == 1 for a, b in rows) for r in range(16) for c in range(16)]
        rim = np.flatnonzero(np.array(near) & ~mask)
        inside = embedding[mask]
        within = np.mean([np.linalg.norm(x - y) for i, x in enumerate(inside) for y in np.delete(inside, i, 0)])
        to_mask = [np.mean([np.linalg.norm(embedding[t] - x) for x in inside]) for t in rim]
        naive = np.mean([(b - within) / max(b, within) for b in to_mask])
        assert score == pytest.approx(max(0, naive))


def test_instances_do_not_repeat_and_stay_few():
    truth = disc(24, 32, 8, 8, 4) + 2 * disc(24, 32, 14, 23, 5)
    assert len(instances(*planted(truth), max_instances=5)) == 5
    found = instances(*planted(truth), max_instances=40)
    for i, first in enumerate(found):
        for second in found[:i]:
            assert (first.mask & second.mask).sum() <= 0.7 * (first.mask | second.mask).sum()


def test_instances_fall_back_to_three_borders():
    truth = np.zeros((12, 12), dtype=np.int64)
    truth[:, 6:] = 1  # both halves touch three borders
    assert instances(*planted(truth, noise=0.0)) == []
    corner = np.zeros((12, 12), dtype=np.int64)
    corner[:4, :4] = 1  # touches two
    (found,) = instances(*planted(corner, noise=0.0))
    assert np.array_equal(found.mask.numpy(), corner == 1)
    corner[7:10, 6:9] = 2  # touches none: the corner is background now
    (found,) = instances(*planted(corner, noise=0.0))
    assert np.array_equal(found.mask.numpy(), corner == 2)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_result_is_cut_by_its_own_eigenvalues_and_seed(seed):
    records = [planted_record(three_blobs(12, 14), noise=1.5)]
    result = solve(build_problem(records, SpectralConfig("what", num_eigenvectors=4, seed=7)))
    parts = (result.eigenvectors, result.eigenvalues)
    for method in ("ward", "kmeans"):
        settings = {"num_segments": 5, "method": method, "size": (60, 70)}
        found, expected = segment(result, seed=seed, **settings), segment(*parts, seed=seed or 7, **settings)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.scores, expected.scores)
    found, expected = instances(result, seed=seed), instances(*parts, seed=seed or 7)
    assert [one.score for one in found] == [one.score for one in expected]
    for call in (segment, instances):
        with pytest.raises(SpectralError, match="`eigenvalues`: expected none beside a result"):
            call(result, result.eigenvalues)
        with pytest.raises(SpectralError, match="`eigenvalues`: expected one for each of the eigenvectors, got none"):
            call(result.eigenvectors)
    with pytest.raises(TypeError, match="positional argument"):
        segment(result, None, 5)


def test_messages():
    maps, values = planted(quarters(3, 4))
    with pytest.raises(
        SpectralError, match="`num_segments`: expected 'auto' or an integer from 1 to the number of tokens, 12, got 13"
    ):
        segment(maps, values, num_segments=13)
    with pytest.raises(SpectralError, match="`num_segments`"):
        segment(maps, values, num_segments=0)
    with pytest.raises(SpectralError, match="`num_eigenvectors`: expected at least 2, .* got 1"):
        segment(maps[:1], values[:1])
    with pytest.raises(SpectralError, match="`eigenvectors`: expected finite values, got NaN"):
        segment(torch.where(maps == maps.max(), torch.nan, maps), values)
    with pytest.raises(SpectralError, match="`size`: expected height and width"):
        segment(maps, values, size=(0, 5))
    with pytest.raises(SpectralError, match="`max_instances`"):
        instances(maps, values, max_instances=0)
