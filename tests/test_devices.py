"""The mathematics on devices that this machine need not have, and how often the host would wait for one."""

import collections

import pytest
import torch

from hf_spectral import (
    EigenSolver,
    GradientSolver,
    SpectralConfig,
    build_problem,
    capture_attention,
    solve,
    token_affinity,
)
from hf_spectral.basis import BasisAccumulator
from hf_spectral.grid import TokenGrid
from hf_spectral.records import AttentionRecord
from hf_spectral.solvers import DatasetGradientSolver
from hf_spectral.torch_state import with_float64
from tests.families.tiny_backbones import BACKBONES
from tests.families.tiny_denoisers import DENOISERS
from tests.gpu.simulated import SimulatedDevice
from tests.gpu.waits import counted_waits

LAYERS, MORE_LAYERS = 2, 3


def records(num_layers, place, grids=((8, 8),), images=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(num_layers):
        height, width = grids[index % len(grids)]
        tokens = (torch.randn(images, 2, height * width, 6, generator=generator) for _ in range(3))
        query, key, value = map(place, tokens)
        grid = TokenGrid(height, width)
        found.append(AttentionRecord(f"{index}", index, query, key, value, 0.4, grid, num_layers=num_layers))
    return found


def problem(pathway, grids=((8, 8),), solver=None, **settings):
    def analyze(num_layers, place, waits, device):
        config = SpectralConfig(pathway, num_eigenvectors=3, **settings)
        given = records(num_layers, place, grids)
        waits.clear()
        built = build_problem(given, config)
        counted = dict(waits)
        result = solve(built, solver or EigenSolver(max_steps=3, dense_below=0), require_convergence=False)
        return counted, [result.eigenvalues, *result.eigenvectors.abs()]

    return analyze


def dataset(pathway, grids=((8, 8),), walk=0.0, max_width=None, **settings):
    def fit(num_layers, place, waits, device):
        config = SpectralConfig(pathway, "cosine", **settings)
        accumulator = BasisAccumulator(config, max_width, device=with_float64(device))
        images = [records(num_layers, place, grids, images=2, seed=seed) for seed in range(2)]
        accumulator.add_sums(images[0])
        waits.clear()  # The first image tells the layers, of which each has signs and perhaps columns.
        accumulator.add_sums(images[1])
        for image in images:
            accumulator.add_gram(image)
        counted = dict(waits)
        basis = accumulator.solve(4)
        basis.project([record.image(1) for record in images[0]], walk)  # Copies the basis to the device.
        waits.clear()
        projector = basis.projector(walk)
        for record in images[0]:
            projector.add(record)
        results = projector.results()
        return collections.Counter(counted) + waits, [basis.eigenvalues, results[0].eigenvectors[0]]

    return fit


def one_token(num_layers, place, waits, device):
    given = records(num_layers, place, MIXED)
    waits.clear()
    found = token_affinity(given, (0.5, 0.5), SpectralConfig("what", num_eigenvectors=3))
    return dict(waits), [found.joint.cpu()]


def paper(num_layers, place, waits, device):
    images = [records(num_layers, place, ((6, 6),), seed=seed) for seed in range(3)]
    solver = DatasetGradientSolver(rounds=2, steps_per_batch=1, batch_size=2, channels=5)
    results = solver.fit(images, SpectralConfig("what", "knn", num_eigenvectors=3))
    return {}, [result.eigenvectors.abs() for result in results]


MIXED = ((8, 8), (4, 4))
ANALYSES = {
    **{f"problem, {pathway}": problem(pathway) for pathway in ("what", "where")},
    **{f"automatic weights, {pathway}": problem(pathway, layer_weights="auto") for pathway in ("what", "where")},
    "cosine": problem("where", affinity="cosine", layer_weights="auto"),
    "cosine of narrow layers": problem("what", affinity="cosine"),
    "heads": problem("what", heads="separate", layer_weights="auto"),
    "two grids": problem("where", MIXED),
    "gradient": problem("what", solver=GradientSolver(max_steps=3)),
    **{f"dataset, {pathway}": dataset(pathway) for pathway in ("what", "where")},
    "dataset, two grids": dataset("what", MIXED),
    "dataset, bounded width": dataset("where", max_width=40, layer_weights="equal"),
    "token": one_token,
}
# A sparse graph is as large as its data say, which the host has to ask: nothing else may wait in a layer.
GRAPHS = {
    "neighbors": problem("what", affinity="knn"),
    "walk": dataset("what", walk=0.5),
    "paper": paper,
}


def run(name, num_layers, kind):
    analyze = {**ANALYSES, **GRAPHS}[name]
    if kind == "cpu":
        return analyze(num_layers, lambda tensor: tensor, collections.Counter(), torch.device("cpu"))
    device = SimulatedDevice(kind)
    with device.here():
        return analyze(num_layers, device.far, device.waits, device.device)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "cuda") for name in [*ANALYSES, *GRAPHS]]
    + [(name, "mps") for name in ("problem, what", "gradient", "dataset, where", "walk", "paper")],
)
def test_every_analysis_runs_on_any_device_and_gives_the_numbers_of_the_cpu(name, kind):
    found, expected = run(name, LAYERS, kind)[1], run(name, LAYERS, "cpu")[1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [*ANALYSES, *GRAPHS])
def test_the_host_does_not_wait_for_the_device_in_any_layer(name):
    for count in (LAYERS, MORE_LAYERS):  # What is copied to the device once, whatever comes after.
        run(name, count, "cuda")
    few, many = (collections.Counter(run(name, count, "cuda")[0]) for count in (LAYERS, MORE_LAYERS))
    allowed = {"nonzero", "_coalesce"} if name in GRAPHS else set()
    assert set(many - few) <= allowed


@pytest.mark.parametrize("name", [*BACKBONES, *(name for name in DENOISERS if name != "lumina2")])
def test_a_capture_does_not_wait_in_any_layer(name):
    tiny = {**BACKBONES, **DENOISERS}[name]
    model = tiny.model()
    if name in BACKBONES:
        arguments, num_layers = {"pixel_values": tiny.images(1), **tiny.forward}, len(tiny.grids) + tiny.num_skipped
    else:
        arguments, num_layers = tiny.arguments(), len(tiny.grids)
    counts = []
    for layers in ([num_layers - 1], range(num_layers)):
        with torch.no_grad(), counted_waits("cpu") as waits, capture_attention(model, lambda _: None, layers):
            model(**arguments)
        counts.append(waits)
    assert not counts[1] - counts[0]


def test_the_simulated_device_has_the_rules_of_a_device():
    device = SimulatedDevice("cuda")
    with device.here():
        far = device.far(torch.ones(3))
        with pytest.raises(RuntimeError, match="operands on the CPU"):
            far + torch.ones(3)
        with pytest.raises(RuntimeError, match="a generator of the device"):
            torch.randn(3, device=far.device, generator=torch.Generator())
        assert not device.waits
        assert far.sum().item() == 3
        assert (far * 2).cpu().tolist() == [2, 2, 2]
        far[far > 0] = torch.full((), 7.0)
        assert device.waits == {"_local_scalar_dense": 1, "copy to the host": 1, "mask as an index": 1}
    device = SimulatedDevice("mps")
    with device.here(), pytest.raises(TypeError, match="float64"):
        device.far(torch.ones(3)).double()
