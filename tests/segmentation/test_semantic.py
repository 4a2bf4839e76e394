import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hf_spectral.clusters import unit_rows
from hf_spectral.errors import SpectralError
from hf_spectral.metrics import adjusted_rand_index
from hf_spectral.segmentation import (
    find_clusters,
    label_image,
    leading_eigenvectors,
    sample_tokens,
    semantic,
    semantic_segmentation,
)


def planted(shapes=((8, 10), (10, 6), (7, 7)), classes=4, noise=0.1):
    """Maps whose rows point in the direction of their class, with any length; the first channel is void of meaning."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:classes]
    labels = [torch.randint(classes, shape, generator=generator) for shape in shapes]
    maps = []
    for one in labels:
        rows = directions[one] + noise * torch.randn(*one.shape, 6, generator=generator)
        lengths = 0.01 + torch.rand(*one.shape, 1, generator=generator)
        maps.append(
            torch.cat([100 * torch.randn(1, *one.shape, generator=generator), (lengths * rows).permute(2, 0, 1)])
        )
    return maps, labels


def flat(labels):
    return torch.cat([one.flatten() for one in labels])


def test_classes_mean_the_same_in_every_image():
    maps, labels = planted()
    found = semantic_segmentation(maps, 4)
    assert [one.shape for one in found] == [one.shape for one in labels]
    assert adjusted_rand_index(flat(found), flat(labels)) > 0.98


def test_sizes_give_labels_of_pixels():
    maps, labels = planted()
    halves = [torch.arange(one.shape[1]).expand(one.shape) * 2 // one.shape[1] for one in labels]
    maps = [torch.stack([torch.ones(half.shape), half.float(), 1.0 - half]) for half in halves]
    found = semantic_segmentation(maps, 2, [(30, 40), (41, 20), (5, 5)])
    assert [tuple(one.shape) for one in found] == [(30, 40), (41, 20), (5, 5)]
    for one in found:
        assert (one == one[:1]).all()
        assert one[0, 0] == found[0][0, 0] != one[0, -1]
    assert abs(int(np.flatnonzero(np.diff(found[0][0].numpy()))[0]) - 19) <= 1


def test_later_eigenvectors_of_few_images_do_not_count():
    maps, labels = planted()
    count = leading_eigenvectors(len(maps))
    assert (leading_eigenvectors(1), count, leading_eigenvectors(20), leading_eigenvectors(200)) == (16, 18, 32, 176)
    generator = torch.Generator().manual_seed(5)
    # Large, and of one value within each image: the only thing that they tell apart.
    own = [10 * torch.randn(30, 1, 1, generator=generator).expand(30, *one.shape) for one in labels]
    between = [torch.zeros(count - len(one), *one.shape[1:]) for one in maps]
    longer = [torch.cat(parts) for parts in zip(maps, between, own, strict=True)]
    assert adjusted_rand_index(flat(semantic_segmentation(longer, 4)), flat(labels)) > 0.98
    # Of a basis of 50 images, 56 count.
    assert adjusted_rand_index(flat(semantic_segmentation(longer, 4, num_fitted=50)), flat(labels)) < 0.5


def test_deterministic():
    maps, _ = planted(noise=1.0)
    one, two, other = (flat(semantic_segmentation(maps, 4, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_messages():
    maps, _ = planted()
    with pytest.raises(SpectralError, match="`num_segments`: expected at most the 189 tokens that differ, got 200"):
        semantic_segmentation(maps, 200)
    with pytest.raises(SpectralError, match="`num_segments`: expected at most the 1 tokens that differ, got 2"):
        semantic_segmentation([torch.ones(3, 4, 4)] * 2, 2)
    with pytest.raises(SpectralError, match="at least one image"):
        semantic_segmentation([], 2)
    with pytest.raises(SpectralError, match="the same number of eigenvectors, at least 2, got 1 images"):
        semantic_segmentation([torch.ones(1, 4, 4)], 2)
    with pytest.raises(SpectralError, match="`sizes`: expected one for each of 3 images, got 1"):
        semantic_segmentation(maps, 4, [(8, 8)])
    with pytest.raises(SpectralError, match="`num_fitted`"):
        semantic_segmentation(maps, 4, num_fitted=0)
    with pytest.raises(SpectralError, match="finite values"):
        semantic_segmentation([torch.full((3, 4, 4), torch.nan)], 2)


def noisy(classes=6, channels=40, nodes=3000, seed=0):
    """Unit rows whose classes differ in few directions, with a common noise that is large in a few others."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (nodes,), generator=generator)
    means = torch.zeros(classes, channels)
    means[:, :classes] = torch.eye(classes)
    spread = torch.cat(
        [torch.full((classes,), 0.2), torch.full((4,), 1.0), torch.full((channels - classes - 4,), 0.05)]
    )
    rows = means[labels] + spread * torch.randn(nodes, channels, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1), labels


def test_directions_are_the_linear_discriminants_of_the_pseudo_clusters():
    rows, _ = noisy(nodes=1000)
    clusters = find_clusters(rows, 3)
    pseudo = KMeans(12, n_init=4, random_state=0).fit_predict(rows.numpy())
    expected = LinearDiscriminantAnalysis().fit(rows.double().numpy(), pseudo).scalings_[:, :11]
    # The same subspace, but for the ridge.
    angles = scipy.linalg.subspace_angles(clusters.directions.double().numpy()[:, :5], expected[:, :5])
    assert clusters.directions.shape == (40, 11)
    assert np.degrees(angles.max()) < 6


def test_a_label_of_an_image_is_the_nearest_center_by_the_written_formula():
    maps, _ = planted(noise=0.5)
    rows = torch.cat([unit_rows(one) for one in maps])
    clusters = find_clusters(rows, 4, seed=3, walk=0.7)
    assert (clusters.num_segments, clusters.walk) == (4, 0.7)
    for one in maps:
        u = one[1:].flatten(1).T.double()
        u = u / u.norm(dim=1, keepdim=True)
        y = (u - clusters.mean) @ clusters.directions.double()
        y = y / y.norm(dim=1, keepdim=True)
        distances = (y[:, None] - clusters.centers).norm(dim=2)
        labels, confidence, scores = label_image(one, clusters, one.shape[1:])
        assert torch.equal(labels.flatten(), clusters.cluster[distances.argmin(1)])
        is_own = clusters.cluster == labels.flatten()[:, None]
        a = distances.where(is_own, torch.inf).min(1).values
        b = distances.where(~is_own, torch.inf).min(1).values
        torch.testing.assert_close(confidence.flatten(), (1 - a / b).float(), atol=1e-4, rtol=0)
        for index in range(4):
            mean = confidence[labels == index].mean() if (labels == index).any() else 0
            assert float(scores[index]) == pytest.approx(float(mean), abs=1e-4)
        torch.testing.assert_close(label_image(17 * one, clusters, one.shape[1:])[0], labels)  # Scale does not count.


def test_one_cluster_is_certain():
    maps, _ = planted()
    clusters = find_clusters(unit_rows(maps[0]), 1)
    labels, confidence, scores = label_image(maps[0], clusters, (16, 20))
    assert (labels == 0).all()
    assert (confidence == 1).all()
    assert scores.tolist() == [1]


def test_confidence_of_pixels_is_that_of_interpolated_distances():
    maps, _ = planted(noise=0.5)
    clusters = find_clusters(torch.cat([unit_rows(one) for one in maps]), 4)
    wide = torch.nn.functional.interpolate(clusters.distances(maps[0])[None], (31, 52), mode="bilinear")[0]
    of_cluster = torch.stack([wide[clusters.cluster == index].amin(0) for index in range(4)])
    (a, b), order = of_cluster.topk(2, dim=0, largest=False)
    labels, confidence, _ = label_image(maps[0], clusters, (31, 52))
    assert torch.equal(labels, order[0])
    torch.testing.assert_close(confidence, 1 - a / b, atol=1e-5, rtol=0)
    assert 0 <= confidence.min() < 0.1 < confidence.max() <= 1


@pytest.mark.parametrize("num_segments", [1, 2, 5, 400])
def test_few_tokens_copies_and_as_many_clusters_as_tokens(num_segments):
    rows = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    clusters = find_clusters(rows.repeat(3, 1), num_segments)
    assert torch.isfinite(clusters.directions).all()
    assert int(clusters.cluster.max()) + 1 == min(num_segments, 20)
    alike = find_clusters(rows[:1].repeat(50, 1), num_segments)
    assert int(alike.cluster.max()) == 0


def test_samples_of_tokens_do_not_depend_on_how_images_are_shared(monkeypatch):
    monkeypatch.setattr(semantic, "SAMPLE_TOKENS", 30)
    counts = [50, 7, 0, 100, 3]
    chosen = sample_tokens(counts, seed=0)
    assert len(chosen) == len(counts)
    assert 20 <= sum(map(len, chosen)) <= 30
    assert all((one < count).all() and (np.diff(one) > 0).all() for one, count in zip(chosen, counts, strict=True))
    assert all(np.array_equal(one, two) for one, two in zip(chosen, sample_tokens(counts, 0), strict=True))
