"""Problems and solvers against dense float64 references and planted partitions."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.linalg
import torch
from jaxtyping import TypeCheckError
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from hf_spectral.affinities import Attention, Cosine, Exponential, NearestNeighbors
from hf_spectral.basis import BasisAccumulator
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import NotConvergedError, SpectralError
from hf_spectral.grid import TokenGrid, area_pooling
from hf_spectral.krylov import leading_eigenpairs, random_block
from hf_spectral.metrics import what_score
from hf_spectral.operators import DenseOperator, IdentityOperator
from hf_spectral.problem import JointProblem, ProblemBuilder, build_problem
from hf_spectral.result import SolveStatus, SpectralResult
from hf_spectral.segmentation import instances, segment, semantic_segmentation
from hf_spectral.solvers import DatasetGradientSolver, EigenSolver, GradientSolver, solve
from tests.dense import dense_normalized_affinity
from tests.synthetic import AFFINITIES, planted_record, random_record, three_blobs

KRYLOV = EigenSolver(dense_below=0)  # For 60 nodes and more; below, the basis would span everything.


# Every affinity by its short form, and those that have parameters with others than the defaults.
WITH_PARAMETERS = [
    *AFFINITIES,
    *(
        (pathway, affinity)
        for pathway in ("where", "what")
        for affinity in (Exponential(0.1), NearestNeighbors(7, 0.2))
    ),
]


@pytest.mark.parametrize("heads", ["merged", "separate"])
@pytest.mark.parametrize(("pathway", "affinity"), WITH_PARAMETERS)
@pytest.mark.parametrize("max_dense_bytes", [0, 1 << 30], ids=["matrix_free", "dense"])
def test_problem_and_solvers_agree_with_a_dense_reference(pathway, affinity, heads, max_dense_bytes):
    config = SpectralConfig(pathway, affinity, heads, 6)
    records = [random_record(9, 10, seed=seed, index=seed) for seed in range(3)]
    builder = ProblemBuilder(config, max_dense_bytes)
    for record in records:
        builder.add(record)
    problem = builder.build()
    reference = np.mean([dense_normalized_affinity(record, config) for record in records], axis=0)
    expected = np.sort(1 - np.linalg.eigvalsh(reference))[:6]

    np.testing.assert_allclose(problem.affinity.to_dense(), reference, atol=2e-6)
    for solver in (EigenSolver(), KRYLOV):
        result = solve(problem, solver)
        np.testing.assert_allclose(result.eigenvalues, expected, atol=1e-5)
        assert result.residuals.max() < 2e-5
        assert result.status is SolveStatus.CONVERGED


@pytest.mark.parametrize("solver", [EigenSolver(), KRYLOV], ids=["dense", "krylov"])
def test_layers_of_three_resolutions(solver):
    shapes = [(12, 16), (6, 8), (5, 7), (6, 8)]
    records = [random_record(*shape, seed=i, index=i) for i, shape in enumerate(shapes)]
    config = SpectralConfig(num_eigenvectors=8)
    problem = build_problem(records, config)
    affinity, mass = 0, 0
    for record, shape in zip(records, shapes, strict=True):
        pooling = np.kron(area_pooling(12, shape[0]), area_pooling(16, shape[1]))
        affinity = affinity + pooling.T @ dense_normalized_affinity(record, config) @ pooling / 4
        mass = mass + pooling.T @ pooling / 4
    values, vectors = scipy.linalg.eigh(affinity, mass)

    result = solve(problem, solver)

    np.testing.assert_allclose(1 - result.eigenvalues.numpy(), values[::-1][:8], atol=1e-5)
    found = result.eigenvectors.flatten(1).T.double().numpy()
    angles = scipy.linalg.subspace_angles(found, vectors[:, ::-1][:, :8])
    assert angles.max() < 1e-2
    assert result.grid.num_nodes == 12 * 16


@pytest.mark.parametrize("layer_weights", ["equal", "auto", [1, 1e-3], [1e-3, 1]])
@pytest.mark.parametrize(("pathway", "affinity"), AFFINITIES)
def test_both_ways_agree_on_two_resolutions_whatever_the_rank_and_the_weights(pathway, affinity, layer_weights):
    records = [random_record(10, 12, seed=1, index=0), random_record(5, 6, seed=2, index=1)]
    config = SpectralConfig(pathway, affinity, num_eigenvectors=4, layer_weights=layer_weights)
    problem = build_problem(records, config)
    dense, krylov = (solve(problem, solver) for solver in (EigenSolver(), KRYLOV))
    torch.testing.assert_close(krylov.eigenvalues, dense.eigenvalues, atol=2e-5, rtol=0)
    assert max(dense.residuals.max(), krylov.residuals.max()) <= KRYLOV.tolerance


@pytest.mark.parametrize("pathway", ["where", "what"])
@pytest.mark.parametrize("solver", [EigenSolver(), KRYLOV], ids=["dense", "krylov"])
def test_a_planted_partition_is_found(pathway, solver):
    labels = three_blobs()
    records = [planted_record(labels, seed=0, index=0), planted_record(labels, seed=1, index=1)]
    result = solve(build_problem(records, SpectralConfig(pathway, num_eigenvectors=3)), solver)
    rows = result.eigenvectors.flatten(1).T.numpy()
    found = KMeans(3, n_init=5, random_state=0).fit_predict(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert adjusted_rand_score(labels.flatten().numpy(), found) == 1


def test_gradient_reaches_nearly_the_exact_rayleigh_quotient_and_never_passes_it():
    labels = three_blobs(8, 10)
    problem = build_problem([planted_record(labels)], SpectralConfig(num_eigenvectors=4))
    exact = solve(problem).eigenvalues
    found = solve(problem, GradientSolver(max_steps=300, accumulation_steps=1, hidden_channels=32)).eigenvalues
    assert (found >= exact - 1e-5).all()
    assert found[:3].mean() == pytest.approx(exact[:3].mean().item(), abs=0.02)


def test_crowded_eigenvalues_are_told_apart_within_the_default_steps():
    size = 800
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))
    expected = np.r_[0, 0.003 + np.linspace(0, 1, size - 1) ** 2.5]  # The second and the third differ by 6e-8.
    matrix = torch.from_numpy((rotation * (1 - expected)) @ rotation.T).float()
    grid = TokenGrid(20, 40, 0)
    mass = IdentityOperator(size, torch.device("cpu"))
    problem = JointProblem(DenseOperator(matrix), mass, grid, SpectralConfig(), ("made",), (1.0,))
    result = solve(problem, EigenSolver(dense_below=0))
    np.testing.assert_allclose(result.eigenvalues, expected[:16], atol=1e-5)


def test_gradient_accumulation_repeats_the_same_gradient_on_a_fixed_problem():
    problem = build_problem([random_record()], SpectralConfig(num_eigenvectors=3))
    paper = GradientSolver(max_steps=40, accumulation_steps=10, hidden_channels=8)
    short = GradientSolver(max_steps=4, accumulation_steps=1, hidden_channels=8)
    torch.testing.assert_close(solve(problem, paper).eigenvalues, solve(problem, short).eigenvalues, atol=1e-4, rtol=0)


def test_gradient_on_several_resolutions():
    records = [random_record(8, 8, index=0), random_record(4, 4, index=1)]
    problem = build_problem(records, SpectralConfig(num_eigenvectors=3))
    found = solve(problem, GradientSolver(max_steps=20, accumulation_steps=1, hidden_channels=8)).eigenvalues
    exact = solve(problem).eigenvalues
    assert (found >= exact - 1e-5).all()


@pytest.mark.parametrize(
    "solver", [EigenSolver(), KRYLOV, GradientSolver(max_steps=10, accumulation_steps=1, hidden_channels=8)]
)
def test_deterministic(solver):
    state = torch.random.get_rng_state()
    problem = build_problem([random_record(9, 10, seed=4)], SpectralConfig(num_eigenvectors=5))
    first = solve(problem, solver)
    torch.manual_seed(123)
    second = solve(problem, solver)
    assert torch.equal(first.eigenvectors, second.eigenvectors)
    torch.random.set_rng_state(state)


def test_signs_are_fixed():
    result = solve(build_problem([random_record()], SpectralConfig(num_eigenvectors=6)))
    flat = result.eigenvectors.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()


def test_permuting_tokens_permutes_eigenvectors():
    record = random_record(6, 8)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    moved = random_record(6, 8)
    for name in ("query", "key", "value"):
        object.__setattr__(moved, name, getattr(record, name)[:, :, order])
    config = SpectralConfig("where", num_eigenvectors=4)
    plain, permuted = (solve(build_problem([one], config)) for one in (record, moved))
    torch.testing.assert_close(permuted.eigenvalues, plain.eigenvalues, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        permuted.eigenvectors.flatten(1), plain.eigenvectors.flatten(1)[:, order], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("pathway", "affinity"), AFFINITIES)
@pytest.mark.parametrize("solver", [EigenSolver(), KRYLOV], ids=["dense", "krylov"])
def test_identical_tokens_give_finite_eigenvectors(pathway, affinity, solver):
    record = random_record(9, 10)
    for name in ("query", "key", "value"):
        getattr(record, name)[:] = getattr(record, name)[:, :, :1]
    result = solve(build_problem([record], SpectralConfig(pathway, affinity, num_eigenvectors=5)), solver)
    assert torch.isfinite(result.eigenvectors).all()
    if affinity != "knn":  # A query and a key that point apart are cut from the graph: every token is isolated.
        assert result.eigenvalues[0] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("solver", [EigenSolver(), KRYLOV], ids=["dense", "krylov"])
def test_isolated_tokens_give_finite_eigenvectors(solver):
    record = random_record(9, 10, dim=40, heads=1)
    config = SpectralConfig("what", NearestNeighbors(2, 0.4), num_eigenvectors=5)
    problem = build_problem([record], config)
    assert (problem.affinity.degree() == 0).any()
    assert torch.isfinite(solve(problem, solver).eigenvectors).all()


def test_windowed_layers_serve_what_only():
    windowed = random_record(windowed=True)
    assert solve(build_problem([windowed], SpectralConfig("what", num_eigenvectors=2))).layers == ("layer.0",)
    with pytest.raises(SpectralError, match="within windows.*Try pathway='what'"):
        build_problem([windowed], SpectralConfig("where"))
    mixed = build_problem([windowed, random_record(index=1)], SpectralConfig("where"))
    assert mixed.layers == ("layer.1",)
    assert mixed.skipped[0].name == "layer.0"


def test_layers_are_selected_by_index_from_either_end():
    records = [random_record(seed=i, index=i) for i in range(4)]
    assert build_problem(records, SpectralConfig(layers=(-1, 0))).layers == ("layer.0", "layer.3")
    with pytest.raises(SpectralError, match="indices from -4 to 3 for 4 attention layers"):
        build_problem(records, SpectralConfig(layers=(4,)))


def test_more_eigenvectors_than_tokens_is_refused():
    problem = build_problem([random_record(2, 3)], SpectralConfig(num_eigenvectors=7))
    with pytest.raises(SpectralError, match="`num_eigenvectors`: expected at most the number of tokens, 2 x 3 = 6"):
        solve(problem)


def test_not_converged_raises_with_a_remedy_or_returns_its_status():
    problem = build_problem([random_record(20, 24)], SpectralConfig())
    short = EigenSolver(max_steps=1)
    with pytest.raises(NotConvergedError, match="raise `max_steps` or `tolerance`"):
        solve(problem, short)
    result = solve(problem, short, require_convergence=False)
    assert result.status is SolveStatus.MAX_STEPS
    assert result.residuals.max() > short.tolerance


@pytest.mark.parametrize("dense_below", [0, 10_000], ids=["krylov", "dense"])
def test_a_status_says_what_the_residuals_are(dense_below):
    problem = build_problem([random_record(9, 10)], SpectralConfig(num_eigenvectors=4))
    solver = EigenSolver(dense_below=dense_below)
    result = solve(problem, solver)
    vectors = result.eigenvectors.flatten(1).T.double()
    residuals = problem.affinity.to_dense().double() @ vectors - vectors * (1 - result.eigenvalues)
    torch.testing.assert_close(result.residuals.double(), residuals.norm(dim=0), atol=1e-6, rtol=0)
    assert result.status is SolveStatus.CONVERGED
    assert result.residuals.max() <= solver.tolerance
    # No vector in float32 is as exact as that, however it was found.
    strict = EigenSolver(tolerance=1e-12, dense_below=dense_below, max_steps=20)
    with pytest.raises(NotConvergedError, match="`tolerance`.*float32"):
        solve(problem, strict)
    assert solve(problem, strict, require_convergence=False).status is SolveStatus.MAX_STEPS


class _Wrong(EigenSolver):
    """Finds something, and promises the tolerance all the same."""

    def find(self, problem, num_eigenvectors, seed):
        solution = super().find(problem, num_eigenvectors, seed)
        return dataclasses.replace(solution, vectors=solution.vectors.roll(3, 0))


def test_what_a_solver_promises_is_checked():
    problem = build_problem([random_record()], SpectralConfig(num_eigenvectors=3))
    with pytest.raises(NotConvergedError, match="_Wrong stopped"):
        solve(problem, _Wrong())


def test_what_nobody_checked_is_not_called_converged(tmp_path):
    records = [random_record(index=index) for index in range(2)]
    config = SpectralConfig(num_eigenvectors=3)
    gradient = solve(build_problem(records, config), GradientSolver(max_steps=2, hidden_channels=8))
    assert gradient.residuals.max() > 0.01
    room = BasisAccumulator(SpectralConfig("what", "cosine"))
    room.add_sums(records)
    room.add_gram(records)
    projected = room.solve(3).project(records)
    (table,) = DatasetGradientSolver(rounds=1, channels=8).fit(
        [records], SpectralConfig("what", "knn", num_eigenvectors=3)
    )
    for result in (gradient, projected, table):
        assert result.status is SolveStatus.NOT_CHECKED
        assert "No residual was compared" in result.status.remedy
        assert (
            SpectralResult.from_pretrained(result.save_pretrained(tmp_path / "result.safetensors")).status
            is SolveStatus.NOT_CHECKED
        )


def test_a_batch_is_not_one_image():
    record = random_record()
    batch = type(record)(
        **{**record.__dict__, **{n: getattr(record, n).repeat(2, 1, 1, 1) for n in ("query", "key", "value")}}
    )
    with pytest.raises(SpectralError, match="expected one image, got 2 images"):
        build_problem([batch])
    assert build_problem([batch.image(1)]).num_nodes == 48


def test_results_survive_the_disk(tmp_path):
    result = solve(build_problem([random_record()], SpectralConfig("where", layers=(0,), num_eigenvectors=4)))
    loaded = SpectralResult.from_pretrained(result.save_pretrained(tmp_path / "deep" / "photo.safetensors"))
    assert torch.equal(loaded.eigenvectors, result.eigenvectors)
    for name in ("config", "solver", "grid", "layers", "status", "steps"):
        assert getattr(loaded, name) == getattr(result, name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["photo.safetensors"]


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"not a tensor file"])
def test_a_damaged_result_is_refused(tmp_path, content):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(SpectralError, match="a file that SpectralResult.save_pretrained wrote"):
        SpectralResult.from_pretrained(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pathway": "how"}, r"`pathway`: expected one of 'where', 'what', got 'how'"),
        ({"affinity": "euclidean"}, "`affinity`: expected one of 'attention'"),
        ({"affinity": Cosine}, r"`affinity`: expected one of 'attention', .* or an affinity object such as Cosine\(\)"),
        ({"affinity": ["cosine"]}, "`affinity`: expected one of 'attention'"),
        ({"affinity": "attention"}, r"`affinity`: expected one that serves the 'what' pathway: .* got Attention\(\)"),
        ({"affinity": Attention()}, "`affinity`: expected one that serves the 'what' pathway: 'exponential', 'cosine'"),
        ({"num_eigenvectors": 0}, "`num_eigenvectors`: expected an integer of at least 1, got 0"),
        ({"seed": -1}, r"`seed`: expected an integer from 0 to 2\*\*32 - 1, got -1"),
        ({"seed": 2**40}, "`seed`"),
        ({"seed": 2**64}, "`seed`"),
        ({"seed": np.bool_(1)}, "`seed`"),
        ({"layers": ()}, "`layers`: expected a non-empty sequence of integers"),
        ({"heads": "all"}, "`heads`: expected one of 'merged', 'separate'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SpectralError, match=message):
        SpectralConfig(**settings)


@pytest.mark.parametrize(
    ("affinity", "parameters", "message"),
    [
        (Exponential, {"temperature": 0.0}, "`temperature`: expected a number from 0.0001 to 10000, got 0.0"),
        (Exponential, {"temperature": 1e-30}, "`temperature`: expected a number from 0.0001 to 10000, got 1e-30"),
        (Exponential, {"temperature": 1e300}, "`temperature`"),
        (Exponential, {"temperature": 10**400}, "`temperature`"),
        (Exponential, {"temperature": "0.1"}, "`temperature`"),
        (NearestNeighbors, {"threshold": -0.1}, "`threshold`: expected a number from 0 to 1, got -0.1"),
        (NearestNeighbors, {"threshold": float("nan")}, "`threshold`: expected a number from 0 to 1, got nan"),
        (NearestNeighbors, {"threshold": None}, "`threshold`: expected a number from 0 to 1, got None"),
        (NearestNeighbors, {"num_neighbors": 0}, "`num_neighbors`: expected an integer of at least 1, got 0"),
        (NearestNeighbors, {"num_neighbors": np.float64(3)}, "`num_neighbors`"),
        (NearestNeighbors, {"num_neighbors": True}, "`num_neighbors`"),
    ],
)
def test_parameters_of_an_affinity_out_of_range_are_refused(affinity, parameters, message):
    with pytest.raises(SpectralError, match=message):
        affinity(**parameters)


def test_a_name_is_the_short_form_of_an_affinity():
    objects = [Attention(), Exponential(), Cosine(), NearestNeighbors(50, 0.1)]
    for name, made in zip(["attention", "exponential", "cosine", "knn"], objects, strict=True):
        assert SpectralConfig("where", name).affinity == made
        assert SpectralConfig("where", made) == SpectralConfig("where", name)
    assert SpectralConfig("where").affinity == Attention()
    assert SpectralConfig("what").affinity == Exponential()


@pytest.mark.parametrize("name", ["temperature", "num_neighbors", "threshold"])
def test_a_parameter_of_an_affinity_that_is_not_used_cannot_be_given(name):
    owner = Exponential if name == "temperature" else NearestNeighbors
    for affinity in {Attention, Exponential, Cosine, NearestNeighbors} - {owner}:
        with pytest.raises(TypeError, match=name):
            affinity(**{name: 1})
    for affinity in ("attention", "exponential", "cosine", "knn"):
        with pytest.raises(SpectralError, match=name):
            SpectralConfig("where", affinity, **{name: 1})


@pytest.mark.parametrize(("pathway", "affinity"), WITH_PARAMETERS)
def test_settings_come_back_from_json(pathway, affinity):
    config = SpectralConfig(pathway, affinity, layers=(0, -1), layer_weights=[1, 2])
    written = json.loads(json.dumps(config.to_dict()))
    assert SpectralConfig.from_dict(written) == config
    for damaged in ({}, [], {"name": "other"}, {"name": ["cosine"]}, written["affinity"] | {"color": 1}):
        with pytest.raises(SpectralError, match="`affinity`: expected"):
            SpectralConfig.from_dict(written | {"affinity": damaged})


def test_settings_written_by_the_first_version_are_read():
    flat = {"temperature": None, "num_neighbors": 50, "threshold": 0.1}
    for affinity in (Cosine(), NearestNeighbors(20), Exponential(0.2)):
        config = SpectralConfig("what", affinity)
        written = config.to_dict() | flat | {name: one for name, one in affinity.to_dict().items() if name != "name"}
        assert SpectralConfig.from_dict(written | {"affinity": affinity.name}) == config
    with pytest.raises(SpectralError, match=r"`config`: expected the fields affinity, .*unknown \['color'\]"):
        SpectralConfig.from_dict(SpectralConfig().to_dict() | flat | {"affinity": "cosine", "color": 1})


def test_numbers_of_numpy_are_kept_as_plain_ones(tmp_path):
    given = SpectralConfig(
        "what",
        NearestNeighbors(np.uint8(5), np.float32(0.25)),
        num_eigenvectors=np.int64(3),
        layers=np.array([0, -1]),
        seed=np.int32(7),
        layer_weights=np.array([1, 2], dtype=np.float32),
    )
    plain = SpectralConfig("what", NearestNeighbors(5, 0.25), "merged", 3, (0, -1), seed=7, layer_weights=[1, 2])
    assert given == plain
    for value in (*dataclasses.astuple(given), *given.layers, *dataclasses.astuple(given.affinity)):
        assert type(value) in (str, int, float, tuple, type(None))
    assert type(Exponential(np.float32(0.5)).temperature) is float
    result = solve(build_problem([random_record(index=index) for index in range(2)], given))
    assert SpectralResult.from_pretrained(result.save_pretrained(tmp_path / "result.safetensors")).config == plain


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1])
def test_every_seed_of_the_range_serves_every_generator(seed):
    records = [planted_record(three_blobs(12, 14), noise=1.0)]
    result = solve(build_problem(records, SpectralConfig(num_eigenvectors=3, seed=seed)), KRYLOV)
    for method in ("ward", "kmeans"):
        found = segment(result, num_segments=3, method=method)
        assert found.num_segments == 3
    assert instances(result) is not None
    room = BasisAccumulator(SpectralConfig("what", "cosine", seed=seed), max_width=14)
    room.add_sums(records)
    room.add_gram(records)
    assert room.solve(2, seed=seed).num_images == 1


@pytest.mark.parametrize("seed", [-1, 2**40, 2**64, 1.0, None])
def test_a_seed_that_some_generator_refuses_is_refused_by_name(seed):
    maps, values = torch.rand(3, 4, 5), torch.tensor([0.0, 0.1, 0.2])
    of_image = (
        lambda: segment(maps, values, num_segments=2, seed=seed),
        lambda: segment(maps, values, num_segments=2, method="kmeans", seed=seed),
        lambda: instances(maps, values, seed=seed),
    )
    for call in (
        *(of_image if seed is not None else ()),  # None takes the default.
        lambda: semantic_segmentation([maps], num_segments=2, seed=seed),
        lambda: what_score([maps] * 4, seed=seed),
    ):
        with pytest.raises((SpectralError, TypeCheckError), match=r"seed"):
            call()


def test_extreme_parameters_of_an_affinity_work():
    record = planted_record(three_blobs(6, 7))
    for affinity in (
        Exponential(1e-4),
        Exponential(1e4),
        NearestNeighbors(10**30),
        NearestNeighbors(threshold=0),
        NearestNeighbors(threshold=1),
    ):
        for pathway in ("where", "what"):
            result = solve(build_problem([record], SpectralConfig(pathway, affinity, num_eigenvectors=3)))
            assert torch.isfinite(result.eigenvectors).all()
            assert result.eigenvalues.min() > -1e-4
            assert result.eigenvalues.max() < 2


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: EigenSolver(max_steps=0), "max_steps"),
        (lambda: EigenSolver(tolerance=float("nan")), "tolerance"),
        (lambda: EigenSolver(basis_size=-1), "basis_size"),
        (lambda: GradientSolver(max_steps=-5), "max_steps"),
        (lambda: GradientSolver(accumulation_steps=0), "accumulation_steps"),
        (lambda: GradientSolver(learning_rate=float("inf")), "learning_rate"),
    ],
)
def test_settings_of_a_solver_out_of_range_are_refused(make, name):
    with pytest.raises(SpectralError, match=f"`{name}`: expected"):
        make()


def pencil_of(kind):
    """Return A and B dense, and how the engine is told of B."""
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(80, 80, dtype=torch.float64, generator=generator)
    affinity, mass = (factor + factor.T) / 20, factor @ factor.T / 80 + torch.eye(80, dtype=torch.float64)
    if kind == "euclidean":
        return affinity, torch.eye(80, dtype=torch.float64), {}
    if kind == "mass":
        return affinity, mass, {"mass": lambda vectors: mass @ vectors}
    return affinity, torch.linalg.inv(mass), {"inverse_mass": lambda vectors: mass @ vectors}


@pytest.mark.parametrize("kind", ["euclidean", "mass", "inverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_krylov_engine_in_each_inner_product_is_the_dense_eigendecomposition(kind, dtype):
    affinity, mass, told = pencil_of(kind)
    told = {
        name: lambda vectors, multiply=multiply: multiply(vectors.double()).to(dtype) for name, multiply in told.items()
    }
    values, _ = scipy.linalg.eigh(affinity.numpy(), mass.numpy())
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    multiplied = []

    def multiply(vectors):
        multiplied.append(vectors)
        return (affinity @ vectors.double()).to(dtype)

    start = random_block(80, 8, 0, dtype, torch.device("cpu"))
    pairs = leading_eigenpairs(multiply, start, 4, tolerance=tolerance, max_steps=100, basis_size=32, **told)
    assert pairs.converged
    assert pairs.residuals.max() <= tolerance
    assert {one.dtype for one in (pairs.values, pairs.vectors, pairs.duals, *multiplied)} == {dtype}
    vectors = pairs.vectors.double()
    np.testing.assert_allclose(pairs.values, values[::-1][:4], atol=tolerance)
    np.testing.assert_allclose(vectors.T @ mass @ vectors, np.eye(4), atol=tolerance)
    np.testing.assert_allclose(mass @ vectors, pairs.duals, atol=10 * tolerance)
    np.testing.assert_allclose(affinity @ vectors, mass @ vectors * pairs.values, atol=10 * tolerance)


def test_the_krylov_engine_leaves_out_what_the_inverse_mass_maps_to_zero():
    inverse_mass = torch.diag(torch.tensor([4.0, 3.0, 2.0] + [0.0] * 37, dtype=torch.float64))
    start = random_block(40, 6, 0, torch.float64, torch.device("cpu"))
    pairs = leading_eigenpairs(
        lambda vectors: vectors, start, 6, tolerance=1e-9, max_steps=50, inverse_mass=inverse_mass.matmul
    )
    np.testing.assert_allclose(pairs.values, [4, 3, 2], rtol=1e-9)
    assert pairs.converged


@pytest.mark.parametrize("groups", [4, 16])
def test_the_krylov_engine_finds_repeated_eigenvalues(groups):
    # Equal groups of tokens without a path between them: every eigenvalue is there once per group.
    one = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    affinity = torch.block_diag(*[(one + one.T) / 40] * groups)
    start = random_block(len(affinity), 24, 0, torch.float32, torch.device("cpu"))
    pairs = leading_eigenpairs(affinity.matmul, start, 16, tolerance=1e-5, max_steps=50)
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(affinity.double())[::-1][:16], atol=1e-5)


@pytest.mark.parametrize("solver", [EigenSolver(), KRYLOV])
@pytest.mark.parametrize(("factor", "shown"), [(1.01, "-0.0(1|09999)"), (-2.5, "3.5")])
def test_an_eigenvalue_outside_0_and_2_is_an_error_and_no_result(solver, factor, shown):
    record = random_record(8, 9)
    problem = build_problem([record], SpectralConfig("what", "cosine", num_eigenvectors=1))
    affinity = problem.affinity.to_dense()
    if factor < 0:
        affinity = affinity - 5 * torch.eye(72)
        affinity = affinity * (factor / torch.linalg.eigvalsh(affinity)[-1])
    scaled = dataclasses.replace(problem, affinity=DenseOperator(affinity * (factor if factor > 0 else 1)))
    with pytest.raises(SpectralError, match=f"`eigenvalues`: expected numbers from 0 to 2.*got {shown}"):
        solve(scaled, solver, require_convergence=False)
