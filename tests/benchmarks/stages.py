"""Where the time goes, stage by stage, against the backbone's forward pass and against what the machine could do.

    python -m tests.benchmarks.stages [--coco FOLDER] [--parts floor image fit] [--threads N] [--json FILE]

Stages are ranges of torch's profiler, put around the library's functions from outside; time in a nested range counts
for that range alone. Beside each stage stands its floor: the float32 operations of its products, its exponentials and
its bytes, all counted from shapes (a float64 operation as two), over the rates measured in the same run: a product of
the stage's own shape, exponentials within the cache, a copy within memory. Products and exponentials follow one
another; memory may overlap with both: floor = max(products + exponentials, memory). Stages without such work (reading,
segments, drawing) have none, and what else a stage has to do (degrees, orthogonalization) is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile, record_function

import hf_spectral.basis.accumulator as accumulator
import hf_spectral.pipelines.outputs as outputs
from hf_spectral.basis.gram import BlockGram
from hf_spectral.basis.sums import Totals
from hf_spectral.capture.base import Recorder
from hf_spectral.capture.hooks import AttentionHooks
from hf_spectral.operators import DenseOperator
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.pipelines.images import read_image
from hf_spectral.problem import ProblemBuilder
from hf_spectral.visualization import eigenvector_sheet, segmentation_overlay
from tests.benchmarks import dataset_cost
from tests.benchmarks.common import default_pipe, machine, print_table
from tests.benchmarks.single_image import GRIDS, plain_forward, sample_pixels

MARK = "stage: "
COLUMNS = 24  # vectors that a step of the solver multiplies, at most: 16 wanted and 8 guards
Rows = list[dict[str, Any]]
Stage = tuple[
    Any, str, str | Callable[..., str]
]  # owner and name of a function, and the stage that its time counts for
BACKBONE_STAGES: list[Stage] = [
    (SpectralPathwaysPipeline, "preprocess", "read and preprocess"),
    (SpectralPathwaysPipeline, "records", "forward"),
    (AttentionHooks, "_end_layer", "capture"),
    (Recorder, "add", "capture"),
]


@dataclasses.dataclass
class Work:
    """What a stage cannot do without, in float32 operations, exponentials and bytes."""

    operations: float = 0.0
    exponentials: float = 0.0
    bytes: float = 0.0
    shape: tuple[int, int, int] = (1024, 1024, 1024)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a backbone and of one picture: layers, heads, width with heads merged, tokens on the map."""

    layers: int
    heads: int
    width: int
    nodes: int


def main() -> None:
    """Run the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=["floor", "image", "fit"])
    parser.add_argument("--coco", type=Path, help="folder of pictures, for the part fit")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--resolution", type=int, default=392)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.coco is None:
        options.parts = [part for part in options.parts if part != "fit"]
    pipe = default_pipe(options.threads)
    found: dict[str, Any] = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}}
    print(found["machine"])
    found["stages"] = []
    for part in options.parts:
        for title, rows in PARTS[part](pipe, options).items():
            found["stages"] += [{"run": title, **row} for row in rows if "stage" in row]
            print(f"\n### {title}\n")
            print_table(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def image(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> dict[str, Rows]:
    """One picture, both pathways, 16 eigenvectors, segments and drawings."""
    from sklearn.datasets import load_sample_image

    tables = {}
    for grid, (width, height) in GRIDS.items():
        picture = Image.fromarray(load_sample_image("china.jpg")).resize((width, height), Image.Resampling.BICUBIC)
        pixels = sample_pixels(pipe, height, width)
        resolution = max(width, height)

        def whole(picture: Image.Image = picture, resolution: int = resolution) -> None:
            found = pipe(picture, pathway="both", num_eigenvectors=16, resolution=resolution)
            with record_function(MARK + "draw"):
                for output in found.values():
                    eigenvector_sheet(picture, output["eigenvectors"], output["eigenvalues"])
                    segmentation_overlay(picture, torch.from_numpy(np.array(output["segmentation"])))

        forward = functools.partial(plain_forward, pipe, pixels)
        sizes = _sizes(pipe, (height // 14) * (width // 14))
        with contextlib.ExitStack() as stack:
            solved = _counted_products(stack)
            for owner, name, label in _image_stages():
                stack.enter_context(_ranged(owner, name, label))
            seconds, plain = _measured(whole, forward, options.repeats, solved)
        works = _image_work(sizes, solved, options.repeats + 1)
        tables[f"one picture, {grid} tokens"] = _table(seconds, plain, works)
    return tables


def fit(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> dict[str, Rows]:
    """A fit over pictures of a folder, either pathway."""
    tables = {}
    with dataset_cost.grown(options.coco, options.images) as folder:
        paths = sorted(folder.iterdir())
        nodes = []
        for path in paths:
            tensors = pipe.preprocess(read_image(path), resolution=options.resolution)["inputs"]
            nodes.append(tensors["pixel_values"].shape[-2] // 14 * (tensors["pixel_values"].shape[-1] // 14))
        forward = functools.partial(dataset_cost.forward_over, pipe, paths, options.resolution)
        for pathway in ("what", "where"):
            with contextlib.ExitStack() as stack:
                solved = _counted_gram_products(stack)
                for owner, name, label in _fit_stages():
                    stack.enter_context(_ranged(owner, name, label))
                whole = functools.partial(dataset_cost.fit, pipe, folder, options, pathway)
                seconds, plain = _measured(whole, forward, options.repeats, solved)
            works = _fit_work(pipe, nodes, pathway, solved, options.repeats + 1)
            tables[f"fit, {pathway}, {len(paths)} pictures"] = _table(seconds, plain, works)
    return tables


def _image_stages() -> list[Stage]:
    return [
        *BACKBONE_STAGES,
        (ProblemBuilder, "add", lambda builder, *_: f"operator, {builder.config.pathway}"),
        (ProblemBuilder, "build", lambda builder, *_: f"operator, {builder.config.pathway}"),
        (outputs, "solve", lambda problem, *_: f"solve, {problem.config.pathway}"),
        (outputs, "segment", "segment"),
    ]


def _fit_stages() -> list[Stage]:
    return [
        *BACKBONE_STAGES,
        (accumulator.BasisAccumulator, "_receive", "capture"),
        (accumulator.BasisAccumulator, "_commit_sums", "first pass: sums"),
        (accumulator.BasisAccumulator, "_commit_gram", "second pass: factors"),
        (Totals, "add_gram", "second pass: Gram matrix"),
        (Totals, "add_evidence", "second pass: evidence for the weights"),
        (accumulator, "final_weights", "solve: weights of the layers"),
        (accumulator, "solve_totals", "solve"),
    ]


def _image_work(sizes: Sizes, solved: Counter[str], runs: int) -> dict[str, Work]:
    layers, heads, width, nodes = sizes.layers, sizes.heads, sizes.width, sizes.nodes
    square, block = nodes**2, max(1, (1 << 18) // nodes)
    products = Work(solved["operations"] / 2 / runs, 0, solved["bytes"] / 2 / runs, (COLUMNS, nodes, nodes))
    return {
        "forward": _forward_work(sizes),
        "capture": Work(bytes=layers * 3 * nodes * width * 4),
        # Degrees need the whole kernel before its first entry can enter the sum: written, read, the sum read, written.
        "operator, where": Work(
            layers * 2 * square * width, layers * heads * square, layers * 16 * square, (block, width // heads, nodes)
        ),
        "operator, what": Work(  # Half of each, by symmetry.
            layers * square * (width + 1), layers * square / 2, layers * 8 * square, (block, width + 1, nodes)
        ),
        "solve, where": products,
        "solve, what": products,
    }


def _fit_work(
    pipe: SpectralPathwaysPipeline, nodes: list[int], pathway: str, solved: Counter[str], runs: int
) -> dict[str, Work]:
    sizes = _sizes(pipe, round(statistics.mean(nodes)))
    layers, width, sides = sizes.layers, sizes.width, 1 if pathway == "what" else 2
    rank, tokens = sides * width + 1, sum(nodes)
    total = layers * rank
    forwards = [_forward_work(dataclasses.replace(sizes, nodes=count)) for count in nodes]
    pairs = sum(count**2 for count in nodes) / 8  # Every eighth token asks.
    return {
        "forward": Work(2 * sum(one.operations for one in forwards), shape=forwards[0].shape),
        "capture": Work(bytes=2 * layers * (3 + 2 * sides) * tokens * width * 4),
        "first pass: sums": Work(bytes=layers * tokens * width * sides * 4),
        "second pass: factors": Work(bytes=2 * layers * tokens * rank * 4),
        # One half, the other follows by symmetry; the sum is float64, read and written once per image.
        "second pass: Gram matrix": Work(tokens * total**2, 0, len(nodes) * 8 * total**2, (rank, sizes.nodes, rank)),
        "second pass: evidence for the weights": Work(
            layers * (2 * pairs * width * sides + 2 * pairs * rank + 4 * tokens / 8 * rank**2),
            0,
            len(nodes) * layers * 2 * 16 * rank**2,
            (sizes.nodes // 8, width, sizes.nodes),
        ),
        "solve: weights of the layers": Work(solved["weights"] / runs),
        "solve": Work(solved["operations"] / runs, 0, solved["bytes"] / runs),
    }


def _forward_work(sizes: Sizes) -> Work:
    tokens, width = sizes.nodes + 1, sizes.width
    operations = sizes.layers * (24 * tokens * width**2 + 4 * tokens**2 * width)
    return Work(operations, sizes.layers * sizes.heads * tokens**2, 0, (tokens, width, 4 * width))


def _sizes(pipe: SpectralPathwaysPipeline, nodes: int) -> Sizes:
    config = pipe.model.config
    return Sizes(config.num_hidden_layers, config.num_attention_heads, config.hidden_size, nodes)


def _counted_products(stack: contextlib.ExitStack) -> Counter[str]:
    """Count what the solver multiplies with the joint affinity; both pathways together."""
    counts: Counter[str] = Counter()
    plain = DenseOperator.matmul

    def counted(self: DenseOperator, vectors: torch.Tensor) -> torch.Tensor:
        counts["operations"] += 2 * self.num_nodes**2 * vectors.shape[1]
        counts["bytes"] += 4 * self.num_nodes**2
        return plain(self, vectors)

    stack.enter_context(mock.patch.object(DenseOperator, "matmul", counted))
    return counts


def _counted_gram_products(stack: contextlib.ExitStack) -> Counter[str]:
    """Count what multiplies with the Gram matrix, float64 operations as two, and the reductions of `eigh`."""
    counts: Counter[str] = Counter()
    plain, eigh, weigh = BlockGram.matmul, torch.linalg.eigh, accumulator.final_weights
    place = ["operations"]

    def counted(self: BlockGram, vectors: torch.Tensor) -> torch.Tensor:
        counts[place[0]] += 4 * self.width**2 * vectors.shape[1]
        if place[0] == "operations":
            counts["bytes"] += 4 * self.width**2
        return plain(self, vectors)

    def counted_eigh(matrix: torch.Tensor) -> Any:
        counts[place[0]] += 2 * 4 / 3 * matrix.shape[0] ** 3
        return eigh(matrix)

    def counted_weights(*arguments: Any) -> Any:
        place[0] = "weights"
        try:
            return weigh(*arguments)
        finally:
            place[0] = "operations"

    stack.enter_context(mock.patch.object(BlockGram, "matmul", counted))
    stack.enter_context(mock.patch.object(torch.linalg, "eigh", counted_eigh))
    stack.enter_context(mock.patch.object(accumulator, "final_weights", counted_weights))
    return counts


def _ranged(owner: Any, name: str, label: str | Callable[..., str]) -> contextlib.AbstractContextManager[Any]:
    """Put a range of the profiler around a function while the block lasts."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def ranged(*arguments: Any, **named: Any) -> Any:
        with record_function(MARK + (label if isinstance(label, str) else label(*arguments))):
            return function(*arguments, **named)

    return mock.patch.object(owner, name, ranged)


def _measured(
    whole: Callable[[], object], forward: Callable[[], object], repeats: int, counts: Counter[str]
) -> tuple[list[Counter[str]], list[float]]:
    """Profile a run and time the plain forward pass in turns; one warm-up round is left out."""
    counts.clear()
    stages, plain = [], []
    for number in range(repeats + 1):
        start = time.perf_counter()
        forward()
        elapsed = time.perf_counter() - start
        with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(MARK + "all else"):
            whole()
        if number:
            stages.append(_exclusive(profiler))
            plain.append(elapsed)
    return stages, plain


def _exclusive(profiler: Any) -> Counter[str]:
    """Seconds of each stage, those of the stages inside it taken off."""
    events = [event for event in profiler.events() if event.name.startswith(MARK)]
    seconds: Counter[str] = Counter()
    opened: list[Any] = []
    for event in sorted(events, key=lambda one: (one.time_range.start, -one.time_range.end)):
        while opened and opened[-1].time_range.end <= event.time_range.start:
            opened.pop()
        length = (event.time_range.end - event.time_range.start) / 1e6
        seconds[event.name.removeprefix(MARK)] += length
        if opened:
            seconds[opened[-1].name.removeprefix(MARK)] -= length
        opened.append(event)
    return seconds


def _table(stages: list[Counter[str]], plain: list[float], works: dict[str, Work]) -> Rows:
    names = sorted(set().union(*stages), key=lambda name: -statistics.median(one[name] for one in stages))
    rows: Rows = []
    for name in names:
        seconds = statistics.median(one[name] for one in stages)
        row: dict[str, Any] = {
            "stage": name,
            "seconds": f"{seconds:.4f}",
            "share": f"{statistics.median(one[name] / one.total() for one in stages):.1%}",
            "/ forward": statistics.median(one[name] / alone for one, alone in zip(stages, plain, strict=True)),
        }
        row |= {"products, s": "", "exponentials, s": "", "memory, s": "", "floor, s": "", "stage / floor": ""}
        if name in works:
            work = works[name]
            products = work.operations / matrix_rate(work.shape) if work.operations else 0.0
            exponentials = work.exponentials / exponential_rate()
            memory = work.bytes / copy_rate()
            floor = max(products + exponentials, memory)
            row |= {
                "products, s": f"{products:.4f}",
                "exponentials, s": f"{exponentials:.4f}",
                "memory, s": f"{memory:.4f}",
                "floor, s": f"{floor:.4f}",
                "stage / floor": f"{seconds / floor:.2f}",
            }
        rows.append(row)
    return rows


@functools.cache
def matrix_rate(shape: tuple[int, int, int]) -> float:
    """Float32 operations a second in a product (m, k) @ (k, n) into memory at hand."""
    m, k, n = shape
    left, right, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    return 2 * m * k * n / _seconds(lambda: torch.mm(left, right, out=out))


@functools.cache
def exponential_rate() -> float:
    """Exponentials a second within the processor's cache, by the faster of torch's two ways."""
    values, out = torch.rand(64, 2048), torch.empty(64, 2048)
    ways = (lambda: torch.exp(values, out=out), lambda: torch.softmax(values, dim=1, out=out))
    return values.numel() / min(_seconds(way) for way in ways)


@functools.cache
def copy_rate() -> float:
    """Bytes read and written a second in a copy of 256 MiB."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _seconds(lambda: target.copy_(source))


def _seconds(action: Callable[[], object]) -> float:
    """Median time of one call, over at least 0.2 seconds of calls after two that warm up."""
    return statistics.median(list(_timed(action))[2:])


def _timed(action: Callable[[], object]) -> Iterator[float]:
    begun, number = time.perf_counter(), 0
    while number < 7 or time.perf_counter() - begun < 0.2:
        start = time.perf_counter()
        action()
        yield time.perf_counter() - start
        number += 1


def floor(_: SpectralPathwaysPipeline, __: argparse.Namespace) -> dict[str, Rows]:
    """The rates alone, that floors are made of."""
    shapes = {"square": (1024, 1024, 1024), "attention, 68 x 46": (83, 64, 3128), "values, 68 x 46": (83, 385, 3128)}
    rates = {f"products, {name}, G/s": matrix_rate(shape) / 1e9 for name, shape in shapes.items()}
    rates |= {"exponentials, G/s": exponential_rate() / 1e9, "copy, GB/s": copy_rate() / 1e9}
    return {"rates": [{"rate": name, "value": value} for name, value in rates.items()]}


PARTS = {"image": image, "fit": fit, "floor": floor}

if __name__ == "__main__":
    main()
