"""The paper's optimization over a dataset: planted classes, isolated tokens, layers of several grids."""

import dataclasses

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from hf_spectral.affinities import NearestNeighbors
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid
from hf_spectral.operators import inverse_root_degree
from hf_spectral.records import AttentionRecord
from hf_spectral.solvers import DatasetGradientSolver
from hf_spectral.solvers.dataset_graph import NeighborSettings, batch_graphs
from tests.synthetic import random_record

QUICK = DatasetGradientSolver(rounds=12, channels=8, num_inter=6, learning_rate=0.1, average=0.9)
CONFIG = SpectralConfig("what", NearestNeighbors(6), num_eigenvectors=4)


def planted_dataset(count=5, layers=2, shape=(6, 8), noise=0.3):
    """Images of three classes in other places each time; the directions of a class are those of the layer."""
    generator = torch.Generator().manual_seed(0)
    images, labels = [], []
    for _ in range(count):
        blocks = torch.randint(3, (2, 2), generator=generator)
        labels.append(blocks.repeat_interleave(shape[0] // 2, 0).repeat_interleave(shape[1] // 2, 1))
        images.append([planted_layer(labels[-1], index, noise, generator) for index in range(layers)])
    return images, labels


def planted_layer(labels, index, noise, generator):
    directions = torch.linalg.qr(torch.randn(12, 3, generator=torch.Generator().manual_seed(index)))[0].T
    tokens = directions[labels.flatten()] + noise / 12**0.5 * torch.randn(labels.numel(), 12, generator=generator)
    tokens = tokens.view(1, -1, 2, 6).transpose(1, 2).contiguous()
    return AttentionRecord(f"layer.{index}", index, tokens, tokens, tokens, 1.0, TokenGrid(*labels.shape))


def settings(**changes):
    return NeighborSettings(
        **{"pathway": "what", "neighbors": NearestNeighbors(5), "num_inter": 4, "block_size": 7} | changes
    )


def naive_graph(layer, pathway, num_intra, num_inter, threshold):
    """The normalized graph of one layer, pair by pair in float64."""

    def unit(name):
        parts = [getattr(record, name)[0].double().transpose(0, 1).flatten(1) for record in layer]
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    cosine = unit("value") @ unit("value").T
    if pathway == "where":
        cosine = (unit("query") @ unit("key").T + unit("key") @ unit("query").T) / 2
    owner = [number for number, record in enumerate(layer) for _ in range(record.grid.num_nodes)]
    chosen = torch.zeros_like(cosine)
    for i in range(len(owner)):
        for same, count in ((True, num_intra), (False, num_inter)):
            others = [j for j in range(len(owner)) if j != i and (owner[i] == owner[j]) == same]
            for j in sorted(others, key=lambda j: -cosine[i, j])[:count]:
                if cosine[i, j] > threshold:
                    chosen[i, j] = cosine[i, j]
    graph = (chosen + chosen.T) / 2
    scale = inverse_root_degree(graph.sum(1))
    return graph * scale * scale[:, None]


@pytest.mark.parametrize("pathway", ["what", "where"])
@pytest.mark.parametrize("block_size", [1, 7, 1000])
def test_the_graph_holds_the_nearest_inside_and_between_images(pathway, block_size):
    batch = [[random_record(*shape, seed=seed)] for seed, shape in enumerate([(3, 4), (4, 5), (2, 3)])]
    (graph,) = batch_graphs(batch, settings(pathway=pathway, block_size=block_size))
    expected = naive_graph([records[0] for records in batch], pathway, 5, 4, 0.1)
    torch.testing.assert_close(graph.affinity.to_dense().double(), expected, atol=1e-6, rtol=0)
    assert (graph.num_layers, graph.weight, graph.pools) == (1, 1.0, (None,) * 3)


def test_layers_of_one_grid_are_added_up_and_coarse_ones_weigh_more():
    batch = [
        [random_record(6, 8, seed=10 * i), random_record(6, 8, seed=10 * i + 1, index=1)]
        + [random_record(3, 4, seed=10 * i + 2, index=2)]
        for i in range(2)
    ]
    fine, coarse = batch_graphs(batch, settings())
    assert (fine.num_layers, coarse.num_layers) == (2, 1)
    assert (fine.weight, coarse.weight) == (1, 2)
    expected = sum(naive_graph([records[i] for records in batch], "what", 5, 4, 0.1) for i in range(2))
    torch.testing.assert_close(fine.affinity.to_dense().double(), expected, atol=1e-6, rtol=0)
    assert [one[0].shape for one in coarse.pools] == [(3, 6)] * 2


@pytest.mark.parametrize("batch_size", [40, 4], ids=["one batch", "minibatches"])
def test_planted_classes_are_recovered_across_images(batch_size):
    images, labels = planted_dataset(count=8)
    results = dataclasses.replace(QUICK, batch_size=batch_size, rounds=20).fit(images, CONFIG)
    rows = torch.cat([result.eigenvectors.flatten(1).T for result in results])
    torch.testing.assert_close(rows.T @ rows, torch.eye(4), atol=1e-3, rtol=0)
    found = KMeans(3, n_init=4, random_state=0).fit_predict(rows[:, :3].numpy())
    assert adjusted_rand_score(torch.cat([one.flatten() for one in labels]), found) > 0.9
    assert [result.grid for result in results] == [TokenGrid(6, 8)] * 8
    assert results[0].steps == 20 * (1 if batch_size == 40 else 2) * 5
    # Three classes: three smooth eigenvectors, and no fourth.
    assert results[0].eigenvalues[:3].max() < 0.3 < results[0].eigenvalues[3]
    singular_values = results[0].solver["singular_values"]
    assert singular_values == sorted(singular_values, reverse=True)


def test_eigenvalues_and_residuals_are_those_of_the_dense_problem():
    images = [[random_record(6, 8, seed=i), random_record(3, 4, seed=9 + i, index=1)] for i in range(2)]
    results = dataclasses.replace(QUICK, rounds=1).fit(images, CONFIG)
    vectors = torch.cat([result.eigenvectors.flatten(1).T for result in results]).double()
    affinity, mass = 0, 0
    for layer, weight, pool in (
        (0, 1, torch.eye(48)),
        (1, 2, torch.kron(*(torch.eye(n).repeat_interleave(2, 1) / 2 for n in (3, 4)))),
    ):
        pool = torch.block_diag(pool, pool).double()
        graph = naive_graph([records[layer] for records in images], "what", 6, 6, 0.1)
        affinity, mass = affinity + weight / 2 * pool.T @ graph @ pool, mass + weight / 2 * pool.T @ pool
    quotients = (vectors * (affinity @ vectors)).sum(0) / (vectors * (mass @ vectors)).sum(0)
    residuals = (affinity @ vectors - mass @ vectors * quotients).norm(dim=0)
    torch.testing.assert_close(results[0].eigenvalues.double(), 1 - quotients, atol=1e-5, rtol=0)
    torch.testing.assert_close(results[0].residuals.double(), residuals, atol=1e-5, rtol=0)


def test_isolated_tokens_stay_finite():
    images, _ = planted_dataset(count=3)
    for records in images:
        for record in records:
            record.value[:, :, :3] = 0
    results = dataclasses.replace(QUICK, rounds=3).fit(images, CONFIG)
    for result in results:
        for part in (result.eigenvectors, result.eigenvalues, result.residuals):
            assert torch.isfinite(part).all()
    # Nothing is alike at this threshold: no edges at all.
    none = dataclasses.replace(CONFIG, affinity=NearestNeighbors(6, threshold=1.0))
    lonely = dataclasses.replace(QUICK, rounds=1).fit(images, none)
    torch.testing.assert_close(lonely[0].eigenvalues, torch.ones(4))


def test_deterministic():
    images, _ = planted_dataset(count=4)
    solver = dataclasses.replace(QUICK, rounds=2, batch_size=2)
    state = torch.random.get_rng_state()
    first, again = solver.fit(images, CONFIG), solver.fit(images, CONFIG)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = solver.fit(images, dataclasses.replace(CONFIG, seed=1))
    for one, two, three in zip(first, again, other, strict=True):
        assert torch.equal(one.eigenvectors, two.eigenvectors)
        assert not torch.allclose(one.eigenvectors, three.eigenvectors, atol=1e-3)


def test_block_size_changes_nothing():
    images, _ = planted_dataset(count=3)
    small, large = (dataclasses.replace(QUICK, rounds=2, block_size=size).fit(images, CONFIG) for size in (5, 4096))
    for one, two in zip(small, large, strict=True):
        torch.testing.assert_close(one.eigenvectors, two.eigenvectors, atol=1e-3, rtol=0)


def test_images_of_different_sizes_and_one_image():
    images = [[random_record(*shape, seed=seed)] for seed, shape in enumerate([(3, 4), (5, 2)])]
    results = dataclasses.replace(QUICK, rounds=1).fit(images, CONFIG)
    assert [tuple(result.eigenvectors.shape) for result in results] == [(4, 3, 4), (4, 5, 2)]
    (alone,) = dataclasses.replace(QUICK, rounds=1).fit(images[:1], CONFIG)
    assert torch.isfinite(alone.eigenvectors).all()


def test_windowed_layers_serve_what_only():
    images = [[random_record(seed=i), random_record(seed=i + 5, index=1, windowed=True)] for i in range(2)]
    solver = dataclasses.replace(QUICK, rounds=1)
    assert solver.fit(images, CONFIG)[0].layers == ("layer.0", "layer.1")
    assert solver.fit(images, dataclasses.replace(CONFIG, pathway="where"))[0].layers == ("layer.0",)
    with pytest.raises(SpectralError, match="at least one layer that can serve it, got 'where'"):
        solver.fit([records[1:] for records in images], dataclasses.replace(CONFIG, pathway="where"))


def test_messages():
    images = [[random_record(seed=i)] for i in range(2)]
    with pytest.raises(SpectralError, match="`images`: expected at least one image, got none"):
        QUICK.fit([], CONFIG)
    with pytest.raises(SpectralError, match=r"`config`: expected affinity=NearestNeighbors.* got affinity=Cosine\(\)"):
        QUICK.fit(images, SpectralConfig("what", "cosine"))
    with pytest.raises(SpectralError, match="at most the number of channels, 8, got 9"):
        QUICK.fit(images, dataclasses.replace(CONFIG, num_eigenvectors=9))
    with pytest.raises(SpectralError, match="the same layers in every image"):
        QUICK.fit([images[0], [*images[1], random_record(index=1)]], CONFIG)
    with pytest.raises(SpectralError, match="`average`: expected a number from 0 to 0.999999, got 1.0"):
        DatasetGradientSolver(average=1.0)
    with pytest.raises(SpectralError, match="`rounds`: expected an integer of at least 1"):
        DatasetGradientSolver(rounds=0)
