"""Layer weights: what may be said, what it does to a problem, and those found without labels."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.linalg
import torch

from hf_spectral import (
    BasisAccumulator,
    SpectralBasis,
    SpectralConfig,
    SpectralError,
    build_problem,
    solve,
    token_affinity,
)
from hf_spectral.affinities import NearestNeighbors
from hf_spectral.basis.gram import BlockGram
from hf_spectral.basis.layer_weights import mean_agreement, own_eigenpairs, smoothness
from hf_spectral.basis.sums import add_evidence
from hf_spectral.errors import UnsupportedBackboneError
from hf_spectral.layer_weights import as_weighting, weight_list
from hf_spectral.operators import NormalizedOperator
from hf_spectral.problem import ProblemBuilder, affinity_operators
from hf_spectral.result import SpectralResult
from hf_spectral.solvers import DatasetGradientSolver
from tests.synthetic import planted_record, random_record, three_blobs

PATHWAYS = ["where", "what"]
NOISE = (0, 3)


def images_with_noise(count=8, shape=(12, 14)):
    """Layers 1 and 2 know the three regions of each image, which recur in all of them; layers 0 and 3 are noise."""
    images = []
    for number in range(count):
        labels = three_blobs(*shape).roll(number, 1)
        layers = []
        for index in range(4):
            if index in NOISE:
                layers.append(random_record(*shape, dim=8, seed=10 * number + index, index=index))
            else:
                record = planted_record(labels, noise=0, seed=index, index=index)
                noise = random_record(*shape, dim=8, seed=1000 + 10 * number + index)
                for name in ("query", "key", "value"):
                    getattr(record, name).add_(0.15 * getattr(noise, name))
                layers.append(record)
        images.append(layers)
    return images


def fitted(images, pathway="what", layer_weights="auto", **settings):
    accumulator = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights=layer_weights), **settings)
    for verb in (accumulator.add_sums, accumulator.add_gram):
        for records in images:
            verb(records)
    return accumulator


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("auto", "auto"),
        ("equal", "equal"),
        ([0, 2.5], (0.0, 2.5)),
        (np.array([1, 3], dtype=np.float32), (1.0, 3.0)),
        ({np.int64(1): np.float64(2)}, ((1, 2.0),)),
        ({3: 1, 1: 2}, ((1, 2.0), (3, 1.0))),
        (((1, 2.0), (3, 1.0)), ((1, 2.0), (3, 1.0))),
    ],
)
def test_every_way_to_say_it_has_one_form_that_json_keeps(given, kept):
    config = SpectralConfig(layer_weights=given)
    assert config.layer_weights == kept == as_weighting(kept)
    assert SpectralConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "given",
    ["best", 3, None, {0: -1.0}, {0: float("nan")}, {-1: 1.0}, {"0": 1.0}, [True], [], {}, [(0, 1.0), (0, 2.0)]],
)
def test_what_is_no_weight_is_refused(given):
    with pytest.raises(SpectralError, match="`layer_weights`: expected 'auto', 'equal', or finite weights"):
        SpectralConfig(layer_weights=given)


def test_weights_of_layers_that_are_not_there_are_refused():
    with pytest.raises(SpectralError, match="`layer_weights`: expected a weight above 0"):
        SpectralConfig(layer_weights=[0, 0])
    with pytest.raises(SpectralError, match=r"`layer_weights`: expected indices among \[0, 1\].*got \[5\]"):
        weight_list([0, 1], ((0, 1.0), (5, 1.0)))
    records = [random_record(seed=index, index=index) for index in range(2)]
    with pytest.raises(SpectralError, match=r"expected indices among \[0, 1\].*got \[5\]"):
        build_problem(records, SpectralConfig(layer_weights={0: 1, 5: 1}))
    with pytest.raises(SpectralError, match="expected 'equal': this solver weighs layers as the paper does"):
        DatasetGradientSolver().fit([records], SpectralConfig("what", "knn", layer_weights="auto"))


def kept_in(problem_or_basis):
    """Index and weight of every layer that took part, whatever it is that tells."""
    if isinstance(problem_or_basis, SpectralBasis):
        names = [layer.name for layer in problem_or_basis.layers]
        return dict(zip(names, problem_or_basis.weights, strict=True))
    return dict(zip(problem_or_basis.layers, problem_or_basis.layer_weights, strict=True))


# Of five layers, the second cannot compare queries with keys and the fourth attends within windows.
ODD = {1: {"where_refused": "it has no keys"}, 3: {"windowed": True}}


def odd_layers(seed=0, num_layers=None):
    return [
        random_record(5, 6, seed=seed + index, index=index, num_layers=num_layers, **ODD.get(index, {}))
        for index in range(5)
    ]


@pytest.mark.parametrize("num_layers", [None, 5])
@pytest.mark.parametrize(
    ("pathway", "layers", "layer_weights", "expected"),
    [
        ("where", None, "equal", {0: 1, 2: 1, 4: 1}),
        ("what", None, "equal", {0: 1, 1: 1, 2: 1, 3: 1, 4: 1}),
        ("where", (-1, 0), "equal", {0: 1, 4: 1}),
        ("where", (-2, 0), "equal", {0: 1}),
        ("where", (1, 2, 3), [5], {2: 1}),
        ("where", None, [1, 0, 3], {0: 1, 4: 3}),
        ("where", (4, 0), [1, 3], {0: 1, 4: 3}),
        ("what", (-1, -2), [1, 3], {3: 1, 4: 3}),
        ("what", None, {2: 1, 4: 1}, {2: 1, 4: 1}),
        ("what", (3, 4), {3: 1e308, 4: 1e308}, {3: 1, 4: 1}),
        ("what", (3, 4), [1e-320, 1e-320], {3: 1, 4: 1}),
    ],
)
def test_one_rule_tells_every_solver_which_layers_take_part(pathway, layers, layer_weights, expected, num_layers):
    settings = {"layers": layers, "layer_weights": layer_weights, "num_eigenvectors": 3}
    records = odd_layers(num_layers=num_layers)
    expected = {f"layer.{index}": weight / sum(expected.values()) for index, weight in expected.items()}

    problem = build_problem(records, SpectralConfig(pathway, **settings))
    assert kept_in(problem) == pytest.approx(expected)
    assert torch.isfinite(solve(problem).eigenvectors).all()

    room = BasisAccumulator(SpectralConfig(pathway, "cosine", **settings))
    for add in (room.add_sums, room.add_gram):
        add(records)
        add(odd_layers(7, num_layers))
    basis = room.solve(3)
    assert kept_in(basis) == pytest.approx(expected)
    assert kept_in(basis.project(records)) == pytest.approx(expected)
    resumed = BasisAccumulator(room.config)
    resumed.load_state_dict(room.state_dict())
    assert kept_in(resumed.solve(3)) == pytest.approx(expected)

    row = token_affinity(records, (0.3, 0.6), SpectralConfig(pathway, **settings))
    assert [f"layer.{index}" for index in row.layers] == list(expected)
    token = row.token[0] * 6 + row.token[1]
    torch.testing.assert_close(row.joint.flatten(), problem.affinity.to_dense()[token], atol=1e-5, rtol=0)

    if layer_weights == "equal":
        solver = DatasetGradientSolver(rounds=1, channels=4, num_inter=4)
        (result,) = solver.fit([records], SpectralConfig(pathway, "knn", **settings))
        assert kept_in(result) == pytest.approx(expected)


@pytest.mark.parametrize("layers", [(-2,), (1,), (1, 3)])
def test_layers_that_cannot_serve_are_refused_alike(layers):
    for num_layers in (None, 5):
        records = odd_layers(num_layers=num_layers)
        calls = (
            lambda records=records: build_problem(records, SpectralConfig("where", layers=layers)),
            lambda records=records: BasisAccumulator(SpectralConfig("where", "cosine", layers=layers)).add_sums(
                records
            ),
            lambda records=records: token_affinity(records, (0, 0), SpectralConfig("where", layers=layers)),
            lambda records=records: DatasetGradientSolver().fit(
                [records], SpectralConfig("where", "knn", layers=layers)
            ),
        )
        for call in calls:
            with pytest.raises(
                UnsupportedBackboneError, match="`pathway`.*layer that can serve it, got 'where'.*layer"
            ):
                call()


def test_negative_layers_count_from_the_last_layer_of_the_backbone_and_not_of_the_records():
    # The last of five layers gave no record.
    records = odd_layers(num_layers=5)[:4]
    for layers, expected in (((-2,), "layer.3"), ((-5,), "layer.0")):
        problem = build_problem(records, SpectralConfig("what", layers=layers))
        room = BasisAccumulator(SpectralConfig("what", "cosine", layers=layers))
        with room.adding_sums() as add:
            for record in records:
                add(record)
        assert problem.layers == (expected,)
        assert [layer.name for layer in room.layers] == [expected]
    with pytest.raises(UnsupportedBackboneError):
        build_problem(records, SpectralConfig("what", layers=(-1,)))
    builder = ProblemBuilder(SpectralConfig("what", layers=(-1,)))
    with pytest.raises(SpectralError, match="`layers`: expected indices from 0 for records that do not tell"):
        builder.add(odd_layers()[0])


def test_numbers_pair_with_the_layers_that_take_part_and_their_count_has_to_match():
    records = [random_record(5, 6, seed=index, index=index) for index in range(4)]

    def refused(pathway, count, given, **settings):
        message = rf"`layer_weights`: expected {count} numbers, one for each layer that takes part.*got {given} numbers"
        for call in (
            lambda config: build_problem(records, config(None)),
            lambda config: token_affinity(records, (0, 0), config(None)),
            lambda config: BasisAccumulator(config("cosine")).add_sums(records),
        ):
            with pytest.raises(SpectralError, match=message):
                call(lambda affinity: SpectralConfig(pathway, affinity, **settings))

    refused("what", 4, 3, layer_weights=[1, 2, 3])
    refused("what", 4, 5, layer_weights=[1, 2, 3, 4, 0])
    refused("what", 2, 3, layers=(2, 3), layer_weights=[1, 2, 3])
    records[1] = random_record(5, 6, index=1, windowed=True)
    refused("where", 3, 4, layer_weights=[1, 2, 3, 4])
    config = SpectralConfig("what", layer_weights=[1, 2, 3, 4])
    with pytest.raises(SpectralError, match="`records`: expected layers in call order beside `layer_weights`"):
        build_problem(records[::-1], config)
    room = BasisAccumulator(SpectralConfig("what", "cosine"))
    room.add_sums(records)
    room.add_gram(records)
    with pytest.raises(SpectralError, match="expected 4 numbers.*got 2 numbers"):
        room.solve(2, layer_weights=[1, 2])
    assert room.solve(2, layer_weights=[1, 2, 0, 1]).weights == (0.25, 0.5, 0.25)


@pytest.mark.parametrize("given", [{0: 1.0, 1: 1e-7}, [1e308, 1e-320], [1, 10**400], [float("inf"), 1]])
def test_weights_that_float32_cannot_hold_beside_each_other_are_refused(given):
    with pytest.raises(SpectralError, match="`layer_weights`: expected"):
        SpectralConfig(layer_weights=given)


def test_all_timesteps_of_a_layer_share_its_weight():
    records = [
        dataclasses.replace(random_record(5, 6, seed=10 * step + index, index=index), timestep=float(step))
        for step in range(3)
        for index in range(2)
    ]
    for given in ([1, 3], {0: 1, 1: 3}):
        config = SpectralConfig("what", "cosine", layer_weights=given)
        problem = build_problem(records, config)
        room = BasisAccumulator(config)
        room.add_sums(records)
        room.add_gram(records)
        row = token_affinity(records, (0.5, 0.5), config)
        for weights in (problem.layer_weights, room.solve(2).weights):
            assert weights == pytest.approx((1 / 12, 3 / 12) * 3)
        place = row.token[0] * 6 + row.token[1]
        torch.testing.assert_close(row.joint.flatten(), problem.affinity.to_dense()[place], atol=1e-5, rtol=0)
        assert list(row.layers) == [0, 1]


@pytest.mark.parametrize("max_dense_bytes", [0, 1 << 30])
@pytest.mark.parametrize("affinity", ["exponential", "cosine", "knn"])
def test_given_weights_make_the_weighted_mean_of_one_image(affinity, max_dense_bytes):
    records = [random_record(seed=index, index=index) for index in range(3)]
    config = SpectralConfig("what", affinity, layer_weights=[1, 0, 3])
    builder = ProblemBuilder(config, max_dense_bytes)
    for record in records:
        builder.add(record)
    problem = builder.build()
    parts = [NormalizedOperator(affinity_operators(record, config)[0]).to_dense() for record in records]
    torch.testing.assert_close(problem.affinity.to_dense(), 0.25 * parts[0] + 0.75 * parts[2], atol=1e-5, rtol=0)
    assert problem.layers == ("layer.0", "layer.2")
    assert problem.layer_weights == (0.25, 0.75)
    assert [layer.reason for layer in problem.skipped] == ["its weight is 0"]


def test_equal_weights_by_any_name_change_no_bit():
    records = [random_record(seed=index, index=index) for index in range(3)]
    plain = build_problem(records, SpectralConfig()).affinity.to_dense()
    assert torch.equal(build_problem(records, SpectralConfig(layer_weights=[1, 1, 1])).affinity.to_dense(), plain)
    parts = [NormalizedOperator(affinity_operators(record, SpectralConfig())[0]).to_dense() for record in records]
    torch.testing.assert_close(plain, sum(parts) / 3, atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_dense_bytes", [0, 1 << 30])
@pytest.mark.parametrize("settings", [("what", None), ("where", None), ("what", "cosine"), ("what", "knn")])
def test_automatic_weights_of_one_image_are_one_over_the_root_of_the_norm(settings, max_dense_bytes):
    config = SpectralConfig(*settings, layer_weights="auto")
    records = [planted_record(three_blobs(), noise=noise, index=index) for index, noise in enumerate((0.1, 1.0, 6.0))]
    builder = ProblemBuilder(config, max_dense_bytes)
    for record in records:
        builder.add(record)
    matrices = [NormalizedOperator(affinity_operators(record, config)[0]).to_dense() for record in records]
    plain = np.array([float(matrix.norm()) ** -0.5 for matrix in matrices])
    np.testing.assert_allclose(builder.build().layer_weights, plain / plain.sum(), rtol=0.05)


def test_automatic_weights_of_one_image_are_deterministic_and_saved(tmp_path):
    records = [planted_record(three_blobs(), noise=1.0 + index, index=index) for index in range(3)]
    results = [solve(build_problem(records, SpectralConfig(layer_weights="auto"))) for _ in range(2)]
    assert results[0].layer_weights == results[1].layer_weights
    assert len(set(results[0].layer_weights)) == 3
    assert sum(results[0].layer_weights) == pytest.approx(1)
    loaded = SpectralResult.from_pretrained(results[0].save_pretrained(tmp_path / "result.safetensors"))
    assert (loaded.layer_weights, loaded.config) == (results[0].layer_weights, results[0].config)


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_noise_gets_no_weight_in_a_dataset(pathway):
    basis = fitted(images_with_noise(), pathway).solve(4)
    assert [layer.index for layer in basis.layers] == [1, 2]
    assert basis.config.layer_weights == "auto"
    assert basis.project(images_with_noise(1)[0]).layer_weights == basis.weights


def test_layers_that_are_alike_keep_the_same_weight():
    images = [[planted_record(three_blobs(), seed=0, index=index) for index in range(3)]] * 4
    assert fitted(images).solve(3).weights == pytest.approx((1 / 3,) * 3)


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_smoothness_is_the_mean_quotient_of_a_layers_own_eigenvectors(pathway, monkeypatch):
    monkeypatch.setattr("hf_spectral.basis.sums._STRIDE", 1)
    generator = torch.Generator().manual_seed(0)
    totals, rows, means = [torch.zeros(2, 5, 5, dtype=torch.float64) for _ in range(2)], [], []
    for _ in range(2):
        sides = 2 if pathway == "where" else 1
        layers = [
            tuple(
                torch.nn.functional.normalize(torch.randn(1, 30, 6, generator=generator), dim=2) for _ in range(sides)
            )
            for _ in range(2)
        ]
        factor = torch.randn(30, 5, generator=generator)
        add_evidence(totals, layers, [factor, factor], 0, neighbors=NearestNeighbors(4))
        walk = np.zeros((30, 30))
        for parts in layers:
            left, right = parts[0][0].numpy(), parts[-1][0].numpy()
            cosine = (left @ right.T + right @ left.T) / 2
            np.fill_diagonal(cosine, -9)
            edges = np.where((cosine > 0.1) & (cosine >= np.sort(cosine, 1)[:, -4:-3]), cosine, 0)
            walk += edges / edges.sum(1, keepdims=True) / 2
        rows.append(factor.double().numpy())
        means.append(walk @ rows[-1])
    rows, means = np.concatenate(rows), np.concatenate(means)
    own, singular, right_vectors = np.linalg.svd(rows, full_matrices=False)
    quotients = np.einsum("nk,nk->k", own, means @ right_vectors.T / singular)
    expected = np.average(quotients[1:], weights=singular[1:] ** 2)
    signs = torch.ones(5, dtype=torch.float64)
    own = own_eigenpairs(BlockGram([5], [totals[0][0]]), 0, signs)
    assert smoothness(totals[0], own) == pytest.approx(expected, abs=1e-5)


def test_agreement_is_the_mean_squared_cosine_of_the_principal_angles():
    rng = np.random.default_rng(0)
    common = rng.standard_normal((50, 4))
    factors = [common @ rng.standard_normal((4, 5)) + noise * rng.standard_normal((50, 5)) for noise in (0.1, 0.3, 9)]
    gram = BlockGram([5, 5, 5])
    gram.add([torch.from_numpy(one).float() for one in factors], [(5, 10)] * 3, None)
    own = [own_eigenpairs(gram, position, torch.ones(5, dtype=torch.float64)) for position in range(3)]
    spans = [np.linalg.svd(one, full_matrices=False)[0][:, 1:] for one in factors]
    angles = [[scipy.linalg.subspace_angles(one, other) for other in spans] for one in spans]
    table = np.square(np.cos(angles)).mean(2)
    expected = [(row.sum() - 1) / 2 for row in table]
    np.testing.assert_allclose(mean_agreement(gram, own, [0, 1, 2]), expected, atol=1e-5)
    np.testing.assert_allclose(mean_agreement(gram, own[::2], [0, 2]), [table[0, 2]] * 2, atol=1e-5)
    assert mean_agreement(gram, own[:1], [0]) == [1]


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_a_layer_that_disagrees_with_the_others_takes_no_part(pathway, monkeypatch):
    monkeypatch.setattr("hf_spectral.basis.layer_weights._SLACK", 1.0)  # However smooth it is.
    images = []
    for number in range(8):
        regions, halves = three_blobs(12, 14).roll(number, 1), (torch.arange(168).view(12, 14) % 14 > 6).long()
        labels = (regions, regions, regions, halves)
        images.append([planted_record(one, noise=0.1, seed=i, index=i) for i, one in enumerate(labels)])
    assert [layer.index for layer in fitted(images, pathway).solve(3).layers] == [0, 1, 2]


@pytest.mark.parametrize("pathway", PATHWAYS)
def test_order_batches_and_shards_change_no_weight(pathway):
    images = images_with_noise(6)
    whole = fitted(images, pathway)
    weights = whole.solve(4).weights
    assert fitted(images[::-1], pathway).solve(4).weights == pytest.approx(weights, abs=1e-6)
    shards = [BasisAccumulator(whole.config) for _ in range(2)]
    for number, records in enumerate(images):
        shards[number % 2].add_sums(records)
    shards[0].merge(shards[1])
    state = shards[0].state_dict()
    shards = [BasisAccumulator(whole.config) for _ in range(2)]
    for shard in shards:
        shard.load_state_dict(state)
        shard.finish_sums()
    for number, records in enumerate(images):
        shards[number % 2].add_gram(records)
    shards[0].merge(shards[1])
    assert shards[0].solve(4).weights == pytest.approx(weights, abs=1e-6)


def test_the_number_of_eigenvectors_asked_for_changes_no_weight_and_a_basis_keeps_them(tmp_path):
    accumulator = fitted(images_with_noise(4))
    basis = accumulator.solve(3)
    assert basis.weights == accumulator.solve(6).weights
    loaded = SpectralBasis.from_pretrained(basis.save_pretrained(tmp_path))
    assert (loaded.weights, loaded.config) == (basis.weights, basis.config)


def test_automatic_weights_leave_the_choice_of_others_open():
    images = images_with_noise(4)
    accumulator = fitted(images)
    for weights in ("equal", {1: 1.0, 3: 2.0}):
        found, expected = accumulator.solve(3, layer_weights=weights), fitted(images, layer_weights="equal")
        expected = expected.solve(3, layer_weights=weights)
        assert found.weights == expected.weights
        assert torch.equal(found.eigenvalues, expected.eigenvalues)
        assert found.config.layer_weights == as_weighting(weights)
    with pytest.raises(SpectralError, match="`layer_weights`: expected 'auto' at the start"):
        fitted(images, layer_weights="equal").solve(3, layer_weights="auto")


def test_layers_that_have_nothing_in_common_are_weighed_alike(monkeypatch):
    monkeypatch.setattr("hf_spectral.basis.layer_weights.mean_agreement", lambda *_: np.zeros(2))
    assert fitted(images_with_noise(4)).solve(3).weights == (0.5, 0.5)


def test_layers_of_different_resolution_are_weighed_alike():
    images = [
        [planted_record(three_blobs(*shape), index=index) for index, shape in enumerate([(8, 8), (4, 4)])]
        for _ in range(3)
    ]
    assert fitted(images).solve(3).weights == (0.5, 0.5)


def test_images_of_one_token_weigh_all_layers_alike():
    images = [[random_record(1, 1, seed=10 * number + index, index=index) for index in range(2)] for number in range(6)]
    assert fitted(images).solve(2).weights == pytest.approx((0.5, 0.5))
