"""On a GPU: the numbers of the CPU, no waiting inside a layer, and memory within a stated bound.

In half precision a GPU adds in another order than a CPU, so that what a backbone gives differs in its last digits: of
records these tests ask for 16 of them (`torch.finfo(dtype).eps`). All that is ours begins with the records, and is
compared on the same records, to 1e-4, whatever the precision of the backbone.
"""

import dataclasses
import functools

import pytest
import torch
import transformers

from hf_spectral import SpectralConfig, build_problem, fit, solve, transform
from hf_spectral.basis import BasisAccumulator
from hf_spectral.problem import ProblemBuilder
from hf_spectral.solvers.base import residual_norms
from tests.families.tiny_backbones import BACKBONES, PROCESSOR
from tests.gpu.waits import counted_waits
from tests.pipelines.tiny_diffusion import host_pipeline, spectral
from tests.synthetic import photo

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = 1e-4
RESOLUTION = 192  # 24 x 24 tokens: more than are solved densely.
ANALYSES = [
    SpectralConfig("what", num_eigenvectors=6, layer_weights="auto"),
    SpectralConfig("where", num_eigenvectors=6, layer_weights="auto"),
    SpectralConfig("what", "knn", num_eigenvectors=6),
    SpectralConfig("where", "cosine", num_eigenvectors=6, heads="separate"),
]


def make_pipe(place, dtype):
    model = BACKBONES["dinov2"].model().to(dtype)
    return transformers.pipeline("spectral-pathways", model=model, image_processor=PROCESSOR, device=place)


def make_denoiser(place, dtype):
    return spectral(host_pipeline("sd").to(place, dtype))


def captured(pipe, seeds=(0,), **settings):
    """The records of some pictures, read together, of the transformers or the diffusers pipeline."""
    found = []
    group = [pipe.preprocess(photo(RESOLUTION, RESOLUTION, seed), **settings) for seed in seeds]
    pipe.records(group, found.append)
    return found


def on_cpu(records):
    return [
        dataclasses.replace(one, query=one.query.cpu(), key=one.key.cpu(), value=one.value.cpu()) for one in records
    ]


def assert_same_records(found, expected, dtype):
    bound = max(16 * torch.finfo(dtype).eps, TOLERANCE)
    assert [one.name for one in found] == [one.name for one in expected]
    for one, other in zip(on_cpu(found), expected, strict=True):
        for role in ("query", "key", "value"):
            mine, theirs = getattr(one, role), getattr(other, role)
            assert (mine - theirs).norm() <= bound * theirs.norm(), (one.name, role)


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request, device):
    return DTYPES[request.param]


@pytest.fixture(scope="module")
def pipe(device, dtype):
    return make_pipe(device, dtype)


@pytest.fixture(scope="module")
def records(pipe):
    return captured(pipe, resolution=RESOLUTION)


def test_a_backbone_gives_the_records_of_the_cpu(records, device, dtype):
    assert {one.value.device.type for one in records} == {torch.device(device).type}
    assert {one.value.dtype for one in records} == {torch.float32}
    assert_same_records(records, captured(make_pipe("cpu", dtype), resolution=RESOLUTION), dtype)


def test_a_denoiser_gives_the_records_of_the_cpu(device, dtype):
    found, expected = (captured(make_denoiser(place, dtype)) for place in (device, "cpu"))
    assert_same_records(found, expected, dtype)
    config = SpectralConfig("what", num_eigenvectors=3)
    mine, theirs = (solve(build_problem(one, config)) for one in (found, on_cpu(found)))
    torch.testing.assert_close(mine.eigenvalues, theirs.eigenvalues, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("config", ANALYSES, ids=lambda config: f"{config.pathway}, {config.affinity.name}")
def test_a_problem_has_the_eigenvectors_that_it_has_on_the_cpu(records, config):
    found = solve(build_problem(records, config))
    problem = build_problem(on_cpu(records), config)
    torch.testing.assert_close(found.eigenvalues, solve(problem).eigenvalues, atol=TOLERANCE, rtol=0)
    vectors = found.eigenvectors.flatten(1).T.contiguous()
    assert residual_norms(problem, 1 - found.eigenvalues, vectors).max() < TOLERANCE


@pytest.mark.parametrize("pathway", ["what", "where"])
def test_a_basis_is_that_of_the_cpu(pipe, device, pathway):
    images = [captured(pipe, seeds, resolution=96) for seeds in ((0, 1), (2, 3))]
    bases = []
    for place, given in ((device, images), ("cpu", [on_cpu(one) for one in images])):
        accumulator = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="auto"), device=place)
        for add in (accumulator.add_sums, accumulator.add_gram):
            for one in given:
                add(one)
        bases.append(accumulator.solve(5))
    torch.testing.assert_close(bases[0].eigenvalues, bases[1].eigenvalues, atol=TOLERANCE, rtol=0)
    for walk in (0.0, 0.9):
        maps = [
            basis.project([one.image(1) for one in given], walk).eigenvectors
            for basis, given in zip(bases, (images[0], on_cpu(images[0])), strict=True)
        ]
        torch.testing.assert_close(*maps, atol=TOLERANCE, rtol=0)


def test_the_pipeline_says_what_it_says_on_the_cpu(pipe, device, dtype):
    settings = {"pathway": "both", "num_eigenvectors": 5, "resolution": RESOLUTION}
    found = pipe([photo(120, 90, 1), photo(90, 120, 2)], batch_size=2, **settings)
    if dtype is not torch.float32:
        assert all(one["what"]["eigenvectors"].isfinite().all() for one in found)
        return
    expected = make_pipe("cpu", dtype)([photo(120, 90, 1), photo(90, 120, 2)], **settings)
    for mine, theirs in zip(found, expected, strict=True):
        for pathway in ("what", "where"):
            values = mine[pathway]["eigenvalues"], theirs[pathway]["eigenvalues"]
            torch.testing.assert_close(*values, atol=TOLERANCE, rtol=0)


def test_fit_and_transform_find_what_they_find_on_the_cpu(pipe, device, dtype, tmp_path):
    for seed in range(4):
        photo(64, 80, seed).save(tmp_path / f"{seed}.png")
    settings = {"num_eigenvectors": 5, "batch_size": 2, "progress": False}
    basis = fit(pipe, tmp_path, **settings)
    rows = transform(pipe, tmp_path, basis, num_segments=3, dtype="float32", progress=False)
    if dtype is not torch.float32:
        assert len(rows) == 4
        return
    cpu = make_pipe("cpu", dtype)
    torch.testing.assert_close(basis.eigenvalues, fit(cpu, tmp_path, **settings).eigenvalues, atol=TOLERANCE, rtol=0)
    expected = transform(cpu, tmp_path, basis, num_segments=3, dtype="float32", progress=False)
    for mine, theirs in zip(rows, expected, strict=True):
        maps = (torch.tensor(one["eigenvectors"]) for one in (mine, theirs))
        torch.testing.assert_close(*maps, atol=TOLERANCE, rtol=0)


def test_the_host_does_not_wait_in_any_layer(pipe, device):
    group = [pipe.preprocess(photo(64, 64), resolution=64)]
    counts = []
    for _ in range(2):  # The first round copies what all later ones share.
        counts = []
        for layers in ([2], [0, 1, 2]):
            builders = [ProblemBuilder(dataclasses.replace(one, layers=tuple(layers))) for one in ANALYSES[:2]]
            with counted_waits(device) as waits:
                pipe.records(group, functools.partial(add_to, builders), layers)
                for builder in builders:
                    builder.build()
            counts.append(waits)
    assert not counts[1] - counts[0]


def add_to(builders, record):
    for builder in builders:
        builder.add(record)


def memory_bound(num_nodes, width):
    """Bytes beyond the forward pass, for both pathways.

    A sum and its scratch of n^2 numbers per pathway; three blocks of rows (256 MiB each: products, what is normalized
    of them, and what the library keeps); one record and its unit vectors; the solver's basis of 8 x 24 vectors twice.
    """
    matrices, record, basis = 4 * num_nodes**2, 4 * num_nodes * width, 4 * num_nodes * 8 * 24
    return 2 * 2 * matrices + 3 * (256 << 20) + 8 * record + 3 * basis


def test_memory_stays_within_its_bound(device):
    if not device.startswith("cuda"):
        pytest.skip("torch counts the memory of GPUs")
    pipe = make_pipe(device, torch.float32)
    prepared = pipe.preprocess(photo(512, 512), resolution=512)
    peaks = []
    for run in (
        lambda: pipe.records([prepared], lambda record: None),
        lambda: pipe.forward(dict(prepared), pathway="both", num_eigenvectors=16),
    ):
        run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] - peaks[0] <= memory_bound(64 * 64, 32)
