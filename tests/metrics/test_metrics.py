import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_spectral.errors import SpectralError
from hf_spectral.metrics import (
    VarianceShares,
    adjusted_rand_index,
    covering,
    image_score,
    layout_score,
    majority_miou,
    matched_accuracy,
    matched_miou,
    normalized_mutual_information,
    purity,
    variation_of_information,
    what_score,
    where_score,
)

ALL = [
    covering,
    adjusted_rand_index,
    variation_of_information,
    normalized_mutual_information,
    matched_accuracy,
    matched_miou,
    majority_miou,
    purity,
]


def random_maps(seed, segments=5, regions=4, shape=(13, 17)):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, regions, shape)
    noise = rng.integers(0, segments, shape)
    return np.where(rng.random(shape) < 0.6, truth % segments, noise), truth


def naive_covering(prediction, truth):
    total = 0.0
    for region in np.unique(truth):
        inside = truth == region
        best = max(
            (inside & (prediction == s)).sum() / (inside | (prediction == s)).sum() for s in np.unique(prediction)
        )
        total += inside.sum() * best
    return total / truth.size


def bits(values):
    _, counts = np.unique(values, return_counts=True)
    return -sum(c / values.size * math.log2(c / values.size) for c in counts)


def naive_variation(prediction, truth):
    return 2 * bits(prediction * 1000 + truth) - bits(prediction) - bits(truth)


def naive_information(prediction, truth):
    total = bits(prediction) + bits(truth)
    return 2 * (total - bits(prediction * 1000 + truth)) / total


def naive_rand(prediction, truth):
    """Count every pair of pixels."""
    upper = np.triu_indices(truth.size, 1)
    found, wanted = ((one.ravel()[:, None] == one.ravel())[upper] for one in (prediction, truth))
    chance = found.mean() * wanted.mean()
    return ((found & wanted).mean() - chance) / ((found.mean() + wanted.mean()) / 2 - chance)


def matchings(prediction, truth):
    classes, clusters = np.unique(truth), list(np.unique(prediction))
    clusters += [-1] * len(classes)
    return [list(zip(chosen, classes, strict=True)) for chosen in itertools.permutations(clusters, len(classes))]


def naive_accuracy(prediction, truth):
    right = [[((prediction == c) & (truth == t)).sum() for c, t in one] for one in matchings(prediction, truth)]
    return max(map(sum, right)) / truth.size


def naive_miou(prediction, truth):
    def iou(cluster, label):
        union = ((prediction == cluster) | (truth == label)).sum()
        return ((prediction == cluster) & (truth == label)).sum() / union

    return max(np.mean([iou(c, label) for c, label in one]) for one in matchings(prediction, truth))


def naive_majority(prediction, truth):
    votes = np.empty_like(truth)
    for s in np.unique(prediction):
        votes[prediction == s] = np.bincount(truth[prediction == s]).argmax()
    return np.mean(
        [((votes == c) & (truth == c)).sum() / ((votes == c) | (truth == c)).sum() for c in np.unique(truth)]
    )


def naive_purity(prediction, truth):
    return sum(np.bincount(truth[prediction == s]).max() for s in np.unique(prediction)) / truth.size


NAIVE = {
    covering: naive_covering,
    variation_of_information: naive_variation,
    matched_miou: naive_miou,
    matched_accuracy: naive_accuracy,
    majority_miou: naive_majority,
    purity: naive_purity,
    adjusted_rand_index: naive_rand,
    normalized_mutual_information: naive_information,
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(("segments", "regions"), [(5, 4), (2, 4), (4, 1), (1, 3)])
def test_equals_an_independent_implementation(metric, seed, segments, regions):
    prediction, truth = random_maps(seed, segments, regions)
    assert metric(prediction, truth) == pytest.approx(NAIVE[metric](prediction, truth), abs=1e-12)


@pytest.mark.parametrize("metric", ALL)
def test_mean_over_annotators_and_any_container(metric):
    prediction, first = random_maps(0)
    second = random_maps(1)[1]
    expected = (metric(prediction, first) + metric(prediction, second)) / 2
    assert metric(prediction, [first, second]) == pytest.approx(expected)
    tensors = [torch.from_numpy(first), torch.from_numpy(second.astype(np.uint8))]
    assert metric(torch.from_numpy(prediction), tensors) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ALL)
def test_names_of_labels_do_not_matter(metric):
    prediction, truth = random_maps(2)
    renamed = np.array([900_000, 3, 70, 12, 41])[prediction]
    assert metric(renamed, truth) == pytest.approx(metric(prediction, truth))
    assert metric(prediction, truth * 1_000_003) == pytest.approx(metric(prediction, truth))


@pytest.mark.parametrize("metric", ALL)
def test_the_best_value_is_reached_by_the_same_partition_only(metric):
    prediction, truth = random_maps(3)
    best = 0 if metric is variation_of_information else 1
    assert metric((truth + 1) % 4, truth) == pytest.approx(best, abs=1e-12)
    assert abs(metric(prediction, truth) - best) > 0.1


@pytest.mark.parametrize(
    "metric", [normalized_mutual_information, matched_accuracy, matched_miou, majority_miou, purity]
)
def test_void_pixels_are_left_out(metric):
    prediction, truth = random_maps(4)
    seen = truth != 0
    assert metric(prediction, truth, void=0) == pytest.approx(metric(prediction[seen], truth[seen]))
    assert metric(prediction, truth, void=0) != pytest.approx(metric(prediction, truth))


def test_one_pixel_and_sole_segments_are_perfect():
    for shape in ((1, 1), (3, 4)):
        same = np.zeros(shape, dtype=np.int64)
        for metric in ALL:
            assert metric(same, same) == (0 if metric is variation_of_information else 1)


@pytest.mark.parametrize("metric", ALL)
def test_messages_name_the_argument(metric):
    prediction, truth = random_maps(5)
    with pytest.raises(SpectralError, match=r"`truths`: expected the shape of the prediction, \(13, 17\), got \(17,"):
        metric(prediction, truth.T[:, :5])
    with pytest.raises(SpectralError, match="`truths`: expected at least one label map"):
        metric(prediction, [])
    with pytest.raises(SpectralError, match="`prediction`: expected integers from 0"):
        metric(prediction - 1, truth)


@pytest.mark.parametrize("metric", ALL)
def test_every_pixel_a_segment_of_its_own(metric):
    alone = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert metric(alone, alone) == pytest.approx(0 if metric is variation_of_information else 1)
    assert metric(alone, alone) <= 1


def test_only_void_is_refused():
    zeros = np.zeros((2, 2), dtype=np.int64)
    with pytest.raises(SpectralError, match="at least one labelled pixel"):
        purity(zeros, zeros, void=0)


def naive_where(maps):
    """One way analysis of variance, written out."""
    values = torch.stack(maps).double().numpy()
    scores = []
    for j in range(values.shape[1]):
        x = values[:, j].reshape(len(values), -1)
        scores.append(x.mean(0).var() / x.var())
    return scores


def test_where_score_equals_analysis_of_variance():
    generator = torch.Generator().manual_seed(0)
    where = torch.randn(1, 3, 6, 5, generator=generator)
    weights = torch.tensor([0.0, 0.5, 2.0])[:, None, None]
    maps = torch.randn(7, 3, 6, 5, generator=generator) + where * weights
    scores = where_score(maps)
    assert scores.numpy() == pytest.approx(naive_where(list(maps)), abs=1e-9)
    assert scores[0] < scores[1] < scores[2]
    assert where_score(list(maps)).numpy() == pytest.approx(scores.numpy())


def test_where_score_extremes():
    generator = torch.Generator().manual_seed(1)
    layout = torch.randn(1, 1, 4, 4, generator=generator).expand(5, 1, 4, 4)
    levels = torch.randn(5, 1, 1, 1, generator=generator).expand(5, 1, 4, 4)
    constant = torch.full((5, 1, 4, 4), 0.1)
    scores = where_score(torch.cat([layout, levels, constant], dim=1))
    assert scores.tolist() == pytest.approx([1, 0, 0], abs=1e-9)


def test_where_score_compares_different_grids_by_place():
    def gradient(height, width):
        return ((torch.arange(width) + 0.5) / width).expand(1, height, width)

    grids = [(24, 32), (32, 24), (16, 48)]
    same = where_score([gradient(*grid) for grid in grids], bins=8)
    # Within a cell the gradient still varies: 1/8 of the range, that is 1/64 of the variance.
    assert same.item() == pytest.approx(1 - 1 / 64, abs=0.01)
    mirrored = where_score([gradient(*grids[0]), gradient(*grids[1]).flip(2)], bins=8)
    assert mirrored.item() < 0.02
    assert where_score([gradient(*grid) for grid in grids]).item() > 0.98


def test_where_score_messages():
    one = torch.zeros(2, 3, 3)
    with pytest.raises(SpectralError, match="`eigenvectors`: expected maps of at least 2 images, got 1"):
        where_score([one])
    with pytest.raises(SpectralError, match="the same number of eigenvectors"):
        where_score([one, torch.zeros(3, 3, 3)])


def test_majority_lets_several_clusters_share_a_class():
    truth = np.repeat([0, 1], 8)
    clusters = np.repeat([0, 1, 2, 3], 4)
    assert majority_miou(clusters, truth) == 1
    assert matched_miou(clusters, truth) == 0.5
    assert majority_miou(np.zeros(16, dtype=np.int64), truth) == pytest.approx(0.25)


def scenes(count=40, size=20, seed=0):
    """Label maps in which four objects of equal area lie in other places in every image."""
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for _ in range(count):
        quarters = torch.randperm(4, generator=generator).view(2, 2)
        labels = quarters.repeat_interleave(size // 2, 0).repeat_interleave(size // 2, 1)
        shifts = torch.randint(size, (2,), generator=generator).tolist()
        maps.append(labels.roll(shifts, (0, 1)))
    return torch.stack(maps)


VALUES = torch.tensor([[-1.5, -0.5, 0.5, 1.5], [1.0, -1.0, -1.0, 1.0]])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_what_score_extremes():
    labels = scenes()
    count, size = labels.shape[0], labels.shape[1]
    identity = VALUES[:, labels].transpose(0, 1)
    layout = normal(1, 1, size, size).expand(count, 1, size, size)
    level = normal(count, 1, 1, 1).expand(count, 1, size, size)
    noise = normal(count, 1, size, size, seed=1)
    constant = torch.full((count, 1, size, size), 0.1)
    maps = torch.cat([identity, layout, level, layout + level, noise, constant], dim=1)
    scores = what_score(maps)
    assert scores[:2].min() > 0.8  # Tokens on the border of an object are guessed.
    assert scores[2:].max() < 0.01
    given = what_score(maps, list(labels))
    assert given[:2].min() > 0.97
    assert given[2:].max() < 0.01
    for one, two in zip(scores, what_score(list(maps)), strict=True):
        assert one == pytest.approx(two)


def test_what_score_is_the_share_that_was_planted():
    labels = scenes(count=60)
    identity = VALUES[:1, labels].transpose(0, 1)
    layout, level = normal(1, 1, 20, 20), normal(60, 1, 1, 1)
    noise = normal(60, 1, 20, 20, seed=1)
    parts = [part / part.std() for part in (identity, layout.expand(60, 1, 20, 20), level.expand(60, 1, 20, 20), noise)]
    maps = sum(weight**0.5 * part for weight, part in zip((0.4, 0.3, 0.1, 0.2), parts, strict=True))
    what, where, image = (
        float(score) for score in (what_score(maps, list(labels)), where_score(maps), image_score(maps))
    )
    assert what == pytest.approx(0.4, abs=0.03)
    assert where == pytest.approx(0.3, abs=0.03)
    assert image == pytest.approx(0.1, abs=0.02)
    assert what_score(maps).item() == pytest.approx(0.33, abs=0.07)


@pytest.mark.parametrize("num_segments", [2, 20, 80])
def test_what_score_of_noise_does_not_grow_with_the_clusters(num_segments):
    noise = normal(12, 6, 10, 10)
    assert what_score(noise, num_segments=num_segments).mean() < 0.02
    random = list(torch.randint(num_segments, (12, 10, 10), generator=torch.Generator().manual_seed(1)))
    assert what_score(noise, random).mean() < 0.02


def test_what_score_counts_only_what_holds_in_other_images():
    labels = scenes(count=20)
    own = torch.where(torch.arange(20)[:, None, None] % 2 == 0, VALUES[0][labels], -VALUES[0][labels])
    assert what_score(own[:, None], list(labels)).item() == 0
    assert what_score(VALUES[0][labels][:, None], list(labels)).item() > 0.95


def test_what_score_of_different_grids():
    labels = [one[:, :12] if i % 2 else one[:14] for i, one in enumerate(scenes(count=60))]
    identity = [VALUES[:1, one] for one in labels]
    layout = [(torch.arange(one.shape[0])[:, None] / one.shape[0]).expand(one.shape)[None] for one in labels]
    scores = what_score([torch.cat([a, b]) for a, b in zip(identity, layout, strict=True)], labels, bins=7)
    assert scores[0] > 0.8
    assert scores[1] < 0.05


def test_deterministic():
    maps = VALUES[:, scenes(count=8)].transpose(0, 1) + normal(8, 2, 20, 20)
    assert torch.equal(what_score(maps, seed=3), what_score(maps, seed=3))


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_pictures_of_labels_are_read(mode):
    prediction, truth = np.indices((6, 8), dtype=np.uint8) // 3
    picture = Image.fromarray(prediction.astype(np.uint16) if mode == "I;16" else prediction)
    if mode == "P":
        picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert picture.mode == mode
    expected = matched_miou(prediction, truth, void=2)
    assert matched_miou(picture, truth, void=2) == matched_miou(picture, [Image.fromarray(truth)], void=2) == expected
    assert matched_miou(picture, Image.fromarray(truth), void=2) == expected
    with pytest.raises(SpectralError, match="`truths`: expected at least one labelled pixel, got none"):
        matched_miou(picture, np.full_like(truth, 2), void=2)


def test_scores_need_what_they_are_made_of():
    maps = normal(4, 2, 3, 3)
    for bins in (0, -1):
        with pytest.raises(SpectralError, match=f"`bins`: expected an integer of at least 1, got {bins}"):
            where_score(maps, bins)
    with pytest.raises(SpectralError, match="`clusters`: expected the clusters of every image"):
        VarianceShares((3, 3), num_segments=2).add(maps[0])
    shares = VarianceShares((3, 3))
    for one in maps:
        shares.add(one)
    with pytest.raises(SpectralError, match="`clusters`: expected the clusters of every image"):
        shares.what()
    assert torch.isnan(layout_score(torch.full((1, 3, 3), torch.nan))).all()
    assert torch.isnan(where_score(torch.full((2, 1, 3, 3), torch.nan))).all()


def test_what_score_messages():
    maps = torch.zeros(4, 2, 3, 3)
    with pytest.raises(SpectralError, match="`eigenvectors`: expected maps of at least 4 images, got 3"):
        what_score(maps[:3])
    with pytest.raises(SpectralError, match="`clusters`: expected 4 maps of integers from 0"):
        what_score(maps, [torch.zeros(3, 3, dtype=torch.long)] * 3)
    with pytest.raises(SpectralError, match="`clusters`: expected 4 maps of integers from 0"):
        what_score(maps, [torch.full((3, 3), -1)] * 4)
    with pytest.raises(SpectralError, match="the same number of eigenvectors"):
        what_score([*maps[:3], torch.zeros(3, 3, 3)])
    assert what_score(maps).tolist() == [0, 0]


@pytest.mark.parametrize(("shape", "order"), [((9, 14), 3), ((9, 14), 1), ((2, 11), 3), ((1, 12), 2)])
def test_layout_score_is_the_fit_of_a_polynomial(shape, order):
    from sklearn.linear_model import LinearRegression
    from sklearn.preprocessing import PolynomialFeatures

    maps = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 5, shape[1])
    places = np.stack(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij"), axis=-1).reshape(-1, 2)
    terms = PolynomialFeatures(order).fit_transform(places)
    for values, score in zip(maps.flatten(1).numpy(), layout_score(maps, order), strict=True):
        assert float(score) == pytest.approx(LinearRegression().fit(terms, values).score(terms, values), abs=1e-4)


def test_layout_score_tells_gradients_from_objects_and_noise():
    down = torch.linspace(-1, 1, 30)[:, None].expand(30, 40)
    checkers = ((torch.arange(30)[:, None] // 5 + torch.arange(40) // 5) % 2).float()
    noise = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    scores = layout_score(torch.stack([down, down**3, checkers, noise, torch.full((30, 40), 0.1)]))
    assert scores[:2].min() > 0.999
    assert scores[2:4].max() < 0.05
    assert scores[4] == 0
    assert torch.allclose(scores[:4], layout_score(-7 * torch.stack([down, down**3, checkers, noise])), atol=1e-5)
    with pytest.raises(SpectralError, match="`order`"):
        layout_score(noise[None], 0)
