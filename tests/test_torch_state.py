"""Whatever the program around has set in torch, results are those of a fresh program, and its settings stay."""

import contextlib
import random
import threading

import datasets
import numpy as np
import pytest
import torch
import transformers

from hf_spectral import (
    BasisAccumulator,
    EigenSolver,
    GradientSolver,
    SolveStatus,
    SpectralBasis,
    SpectralConfig,
    build_problem,
    fit,
    solve,
    token_affinity,
    transform,
)
from hf_spectral.metrics import layout_score, what_score
from hf_spectral.segmentation import semantic_segmentation
from hf_spectral.solvers import DatasetGradientSolver
from hf_spectral.torch_state import plain_torch
from tests.families.tiny_backbones import BACKBONES, PROCESSOR
from tests.synthetic import AFFINITIES, photo, random_record


@contextlib.contextmanager
def setting(change, undo):
    change()
    try:
        yield
    finally:
        undo()


def precision(name):
    return setting(
        lambda: torch.set_float32_matmul_precision(name), lambda: torch.set_float32_matmul_precision("highest")
    )


def default_dtype(dtype):
    return setting(lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32))


STATES = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "meta by default": lambda: setting(
        lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)
    ),
    "inside another device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": lambda: setting(
        lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)
    ),
    "products of medium precision": lambda: precision("medium"),
}


@pytest.fixture(params=STATES)
def state(request):
    return STATES[request.param]


@pytest.fixture(scope="module")
def pipe():
    model = BACKBONES["dinov2"].model()
    return transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR, num_eigenvectors=4)


@pytest.fixture(scope="module")
def table():
    images = [photo(60 + 16 * (seed % 2), 90, seed) for seed in range(4)]
    return datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())


def same(found, expected):
    """Compare all numbers of a nested answer."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
        return
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.device, found.requires_grad) == (expected.dtype, expected.device, False)
        assert not found.is_inference()
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5, rtol=0)


def test_pipeline(pipe, state):
    def run():
        outputs = [pipe(photo(), pathway=pathway, num_segments=3) for pathway in ("what", "where")]
        outputs += pipe([photo(), photo(76, 90)], batch_size=2)
        return [(one["eigenvalues"], one["eigenvectors"], one["segmentation"], one["status"]) for one in outputs]

    def stream():
        return [one["eigenvalues"] for one in pipe(photo(seed=seed) for seed in range(2))]

    plain = [tuple(one[:3]) for one in run()]
    streamed = stream()
    with state():
        found = run()
        same(stream(), streamed)
    same([one[:3] for one in found], plain)
    assert {one[3] for one in found} == {"converged"}


def test_mathematics(state):
    records = [random_record(10, 12, seed=1, index=0), random_record(5, 6, seed=2, index=1)]
    many = [[random_record(4, 5, seed=seed)] for seed in range(4)]

    def run():
        answers = []
        for kind in AFFINITIES:
            problem = build_problem(records, SpectralConfig(*kind, num_eigenvectors=4, layer_weights="auto"))
            for solver in (EigenSolver(), EigenSolver(dense_below=0)):
                result = solve(problem, solver)
                assert result.status is SolveStatus.CONVERGED
                answers += [result.eigenvalues, result.layer_weights]
            answers.append(token_affinity(records, (0.3, 0.7), SpectralConfig(*kind)).joint)
        quick = GradientSolver(max_steps=6, accumulation_steps=1, hidden_channels=8)
        answers.append(solve(build_problem(records, SpectralConfig(num_eigenvectors=3)), quick).eigenvalues)
        room = BasisAccumulator(SpectralConfig("where", "cosine", layer_weights="auto"), max_width=15)
        for add in (room.add_sums, room.add_gram):
            for one in many:
                add(one)
        basis = room.solve(3)
        maps = [basis.project(one).eigenvectors for one in many]
        scores = [what_score(maps), layout_score(maps[0])]
        table = DatasetGradientSolver(rounds=1, channels=4).fit(many, SpectralConfig("what", "knn", num_eigenvectors=2))
        return [answers, basis.eigenvalues, maps, scores, semantic_segmentation(maps, 2), table[0].eigenvalues]

    plain = run()
    with state():
        found = run()
    same(found, plain)


def test_datasets(pipe, table, state, tmp_path):
    def run():
        basis = fit(pipe, table, progress=False)
        loaded = SpectralBasis.from_pretrained(basis.save_pretrained(tmp_path / "basis"))
        rows = transform(pipe, table, loaded, num_segments=3, dtype="float32", progress=False)
        return [basis.eigenvalues, basis.weights, rows["eigenvectors"][:], rows["segmentation"][:]]

    plain = run()
    with state():
        found = run()
    same(found, plain)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("state_name", ["autocast to bfloat16", "bfloat16 by default", "meta by default"])
def test_every_backbone_is_run_as_it_was_loaded(name, state_name):
    tiny = BACKBONES[name]
    model = tiny.model()
    pipe = transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR, num_eigenvectors=3)
    prepared = [pipe.preprocess(photo(64, 64))]
    plain, found = [], []
    pipe.records(prepared, plain.append)
    with STATES[state_name]():
        pipe.records(prepared, found.append)
    for one, other in zip(found, plain, strict=True):
        same([one.query, one.key, one.value], [other.query, other.key, other.value])


def test_settings_of_the_program_stay_as_they_are():
    def seen():
        return (
            torch.get_float32_matmul_precision(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_device(),
        )

    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), precision("medium"):
        before = seen()
        with plain_torch(), plain_torch():
            assert seen()[2:5] == (False, False, False)
        with pytest.raises(ZeroDivisionError), plain_torch():
            _ = 1 / 0
        assert seen() == before
        inside, leave = threading.Event(), threading.Event()

        def other():
            with plain_torch():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        with plain_torch():
            pass
        product = torch.full((64, 64), 1 / 3)
        with plain_torch():
            leave.set()
            thread.join()
            # The other thread has left: full precision stays as long as anybody is inside.
            exact = product.double() @ product.double()
            torch.testing.assert_close((product @ product).double(), exact, atol=1e-5, rtol=0)
        assert seen() == before


def test_no_number_is_drawn_from_the_generators_of_the_program(pipe, table):
    def states():
        # That of `random` is left out: beartype, which checks types in tests, draws from it.
        return torch.get_rng_state().numpy().tolist(), np.random.get_state()[1].tolist()

    def run():
        output = pipe([photo()], num_segments=3, method="kmeans", instances=True)[0]
        streamed = next(iter(pipe(photo(seed=seed) for seed in range(2))))
        problem = build_problem([random_record()], SpectralConfig(num_eigenvectors=3))
        gradient = solve(problem, GradientSolver(max_steps=3, hidden_channels=4))
        table_ = DatasetGradientSolver(rounds=1, channels=4).fit(
            [[random_record()]], SpectralConfig("what", "knn", num_eigenvectors=2)
        )
        basis = fit(pipe, table, num_eigenvectors=3, max_width=40, progress=False)
        rows = transform(pipe, table, basis, num_segments=3, progress=False)
        return [
            output["eigenvalues"], output["segmentation"], streamed["eigenvalues"], gradient.eigenvalues,
            table_[0].eigenvalues, basis.eigenvalues, rows["segmentation"][:],
        ]  # fmt: skip

    before = states()
    first = run()
    assert states() == before
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 - the generator of the program
    random.seed(7)
    same(run(), first)
