"""What holds of every affinity, problem and basis, whatever the tokens: 200 examples a property."""

import dataclasses

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_spectral.affinities import Attention, Exponential, NearestNeighbors
from hf_spectral.basis import BasisAccumulator
from hf_spectral.config import SpectralConfig
from hf_spectral.grid import area_pooling
from hf_spectral.problem import affinity_operators, build_problem
from tests.synthetic import AFFINITIES, random_record

EXAMPLES = settings(max_examples=200, deadline=None, derandomize=True)
configs = st.builds(
    lambda kind, heads: SpectralConfig(kind[0], NearestNeighbors(5) if kind[1] == "knn" else kind[1], heads),
    st.sampled_from(AFFINITIES),
    st.sampled_from(["merged", "separate"]),
)


@st.composite
def records(draw, index=0):
    """One layer: any small map, tokens that range from nearly alike to unrelated, some of them zero."""
    record = random_record(
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
        heads=draw(st.integers(1, 3)),
        dim=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 2**31)),
        index=index,
    )
    shift = draw(st.sampled_from([0.0, 0.5, 20.0]))
    num_zero = draw(st.integers(0, 2))
    tokens = {name: getattr(record, name) + shift for name in ("query", "key", "value")}
    for part in tokens.values():
        part[:, :, :num_zero] = 0
    return dataclasses.replace(record, **tokens)


@st.composite
def images(draw):
    """Images of one backbone: two layers, maps of any size, the second layer's perhaps half as large."""
    heads, dim = draw(st.integers(1, 2)), draw(st.integers(2, 4))
    is_coarse = draw(st.booleans())
    made = []
    for _ in range(draw(st.integers(2, 5))):
        height, width, seed = draw(st.integers(2, 4)), draw(st.integers(2, 4)), draw(st.integers(0, 2**31))
        coarse = (height // 2, width // 2) if is_coarse else (height, width)
        first = random_record(height, width, heads=heads, dim=dim, seed=seed)
        made.append([first, random_record(*coarse, heads=heads, dim=dim, seed=seed + 1, index=1)])
    return made


def dense(problem):
    return problem.affinity.to_dense().double(), problem.mass.to_dense().double()


def gram(accumulator):
    tensors = accumulator.state_dict()["tensors"]
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("gram", "sum"))}


def accumulated(made, pathway):
    accumulator = BasisAccumulator(SpectralConfig(pathway, "cosine"))
    for one in made:
        accumulator.add_sums(one)
    for one in made:
        accumulator.add_gram(one)
    return accumulator


def joined(made):
    """One batch of images of one size."""
    return [
        dataclasses.replace(
            layer,
            **{name: torch.cat([getattr(one[i], name) for one in made]) for name in ("query", "key", "value")},
        )
        for i, layer in enumerate(made[0])
    ]


def assert_same(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=tolerance, rtol=tolerance)


@EXAMPLES
@given(records(), configs)
def test_affinities_are_symmetric_and_not_negative(record, config):
    for operator in affinity_operators(record, config):
        matrix = operator.to_dense()
        assert torch.isfinite(matrix).all()
        torch.testing.assert_close(matrix, matrix.T, atol=1e-6, rtol=1e-5)
        assert matrix.min() > -1e-6


@EXAMPLES
@given(records(), configs)
def test_the_normalized_laplacian_has_its_spectrum_in_0_to_2(record, config):
    affinity, mass = dense(build_problem([record], config))
    assert torch.equal(mass, torch.eye(len(mass), dtype=torch.float64))
    values = np.linalg.eigvalsh((mass - affinity).numpy())
    assert values[0] > -1e-5
    assert values[-1] < 2 + 1e-5


@EXAMPLES
@given(records(), st.sampled_from(AFFINITIES[:3]))
def test_one_layer_without_isolated_tokens_has_the_trivial_eigenvalue(record, kind):
    affinity, _ = dense(build_problem([record], SpectralConfig(*kind)))
    assert abs(np.linalg.eigvalsh(affinity.numpy())[-1] - 1) < 1e-4


@EXAMPLES
@given(records(), configs, st.randoms(use_true_random=False))
def test_permuting_tokens_permutes_the_problem(record, config, random):
    order = list(range(record.grid.num_nodes))
    random.shuffle(order)
    tokens = {name: getattr(record, name)[:, :, order] for name in ("query", "key", "value")}
    if config.affinity == Exponential():
        config = dataclasses.replace(config, affinity=Exponential(0.3))  # The default is measured on a sample.
    if config.affinity == NearestNeighbors(5):
        config = dataclasses.replace(config, affinity=NearestNeighbors(36))  # Ties among neighbors are broken by place.
    before, _ = dense(build_problem([record], config))
    after, _ = dense(build_problem([dataclasses.replace(record, **tokens)], config))
    torch.testing.assert_close(after, before[order][:, order], atol=1e-5, rtol=1e-4)


@EXAMPLES
@given(records(), configs.filter(lambda config: config.affinity != Attention()), st.floats(0.01, 100))
def test_cosines_do_not_feel_the_scale_of_the_features(record, config, factor):
    tokens = {name: factor * getattr(record, name) for name in ("query", "key", "value")}
    before, _ = dense(build_problem([record], config))
    after, _ = dense(build_problem([dataclasses.replace(record, **tokens)], config))
    if config.affinity == NearestNeighbors(5):  # A cosine at the threshold may fall to either side of it.
        assert ((after - before).abs() > 1e-3).float().mean() < 0.2
    else:
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


@EXAMPLES
@given(records(), st.sampled_from(["merged", "separate"]))
def test_rows_of_attention_sum_to_1_before_they_are_made_symmetric(record, heads):
    for operator in affinity_operators(record, SpectralConfig("where", heads=heads)):
        torch.testing.assert_close(float(operator.to_dense().sum()), float(record.grid.num_nodes), rtol=1e-4, atol=0)


@EXAMPLES
@given(images(), st.sampled_from(["where", "what"]), st.randoms(use_true_random=False))
def test_neither_order_nor_sharding_of_images_changes_a_basis(made, pathway, random):
    whole = accumulated(made, pathway)
    shuffled = list(made)
    random.shuffle(shuffled)
    assert_same(gram(whole), gram(accumulated(shuffled, pathway)))

    cut = random.randrange(1, len(shuffled))
    shards = [BasisAccumulator(whole.config) for _ in range(2)]
    for shard, share in zip(shards, (shuffled[:cut], shuffled[cut:]), strict=True):
        for one in share:
            shard.add_sums(one)
    shards[0].merge(shards[1])
    state = shards[0].state_dict()
    state = {**state, "tensors": {name: tensor.clone() for name, tensor in state["tensors"].items()}}
    shards[1].load_state_dict(state)
    for shard, share in zip(shards, (shuffled[:cut], shuffled[cut:]), strict=True):
        shard.finish_sums()
        for one in share:
            shard.add_gram(one)
    shards[0].merge(shards[1])
    assert_same(gram(whole), gram(shards[0]))


@EXAMPLES
@given(images(), st.sampled_from(["where", "what"]))
def test_the_size_of_a_batch_changes_nothing(made, pathway):
    same_size = [one for one in made if one[0].grid == made[0][0].grid]
    whole = accumulated(same_size, pathway)
    assert_same(gram(whole), gram(accumulated([joined(same_size)], pathway)))


@EXAMPLES
@given(images(), st.sampled_from(["where", "what"]), st.floats(0.01, 100))
def test_a_basis_does_not_feel_the_scale_of_the_features(made, pathway, factor):
    scaled = [
        [
            dataclasses.replace(one, query=factor * one.query, key=factor * one.key, value=factor * one.value)
            for one in image
        ]
        for image in made
    ]
    assert_same(gram(accumulated(made, pathway)), gram(accumulated(scaled, pathway)))


@EXAMPLES
@given(images(), st.sampled_from(["where", "what"]))
def test_eigenvalues_of_a_basis_ascend_from_0_and_stay_below_1(made, pathway):
    basis = accumulated(made, pathway).solve(4, exactly=False)
    assert basis.eigenvalues[0] > -1e-5
    assert (basis.eigenvalues.diff() >= 0).all()
    assert basis.eigenvalues[-1] < 1
    assert (basis.residuals < 1 - basis.eigenvalues).all()  # Each is told from zero.
    assert basis.residuals[0] < 1e-4


@EXAMPLES
@given(st.integers(1, 40), st.integers(1, 40))
def test_area_pooling_keeps_means_and_constants(one, other):
    coarse, fine = sorted((one, other))
    pooling = area_pooling(fine, coarse)
    torch.testing.assert_close(pooling.sum(1), torch.ones(coarse, dtype=torch.float64))
    torch.testing.assert_close(pooling.sum(0), torch.full((fine,), coarse / fine, dtype=torch.float64))
