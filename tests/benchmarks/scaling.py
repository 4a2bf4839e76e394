"""How cost grows: with tokens, images, layers, width and processes; slopes fitted on log-log axes.

    python -m tests.benchmarks.scaling --coco DIR [--parts tokens images layers width processes reading]
        [--json FILE] [--plots DIR]

The folder of `--coco` holds pictures. Every point is measured in a process of its own, on one thread unless told
otherwise; no constant cost is subtracted. "CPU, s" beside the seconds on the clock tells how quiet the machine was: on
one thread the two agree. A JSON file that exists keeps the points that are not measured again; slopes are fitted over
all of them.

- tokens: build and solve the problem of one picture, all 12 layers of DINOv2-small, 16 eigenvectors; up to 64 x 64
  tokens the records of the backbone at that size, above those of 64 x 64 interpolated. Memory is what the peak lies
  above the records.
- images: `fit`, 16 eigenvectors, pictures repeated under new names; seconds inside `fit`, peak of the whole process.
- layers, width: synthetic records whose spectrum decays as 1 / r^2, one image of 1,024 tokens, and a fit of 8 images
  of 256 tokens without a backbone.
- processes: `fit` in one and in two processes.
- reading: one picture from its file to the backbone's input, and through the backbone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from hf_spectral import BasisAccumulator, SpectralConfig, build_problem, capture_attention, solve
from hf_spectral.grid import TokenGrid
from hf_spectral.pipelines.images import read_image
from hf_spectral.records import AttentionRecord
from tests.benchmarks.common import default_pipe, in_fresh_process, machine, peak_mib, print_table, set_threads
from tests.benchmarks.curves import Points, power_chart, slope_row
from tests.benchmarks.dataset_cost import MODULE as FIT_MODULE
from tests.benchmarks.dataset_cost import pictures, probe_words
from tests.benchmarks.dataset_cost import processes as fit_processes

MODULE = "tests.benchmarks.scaling"
Row = dict[str, Any]
# Pathway and affinity: the defaults, and the one that stays a thin factor wherever its rank is below a quarter of the
# tokens.
PROBLEMS = {
    "what": ("what", "exponential"),
    "where": ("where", "attention"),
    "what, low rank": ("what", "cosine"),
}
LARGEST_SIDE = 64  # of a grid that the backbone itself is run on
LAYERS, WIDTH, HEAD_DIM = 12, 384, 64
SYNTHETIC_SIDE, FIT_SIDE, FIT_IMAGES = 32, 16, 8
NUM_EIGENVECTORS = 16


def main() -> None:
    """Run the parts asked for, print their tables and the slopes, draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument(
        "--pathways", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), help="of tokens, images"
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64, 128], help="of the token grid")
    parser.add_argument("--counts", type=int, nargs="+", default=[25, 100, 400, 1600], help="of images")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 6, 12, 24])
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 384, 768, 1536])
    parser.add_argument("--resolution", type=int, default=112, help="of the images part and of processes")
    parser.add_argument("--images", type=int, default=100, help="of the processes part")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="of points below 10 seconds")
    parser.add_argument("--limit-seconds", type=float, default=180, help="points estimated above it are skipped")
    parser.add_argument("--limit-gib", type=float, default=8, help="of a fit of synthetic records")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    set_threads(options.threads)
    if options.probe:
        asked = json.loads(options.probe)
        print(json.dumps(PROBES[asked.pop("kind")](options, **asked)))
        return
    if options.coco is None and set(options.parts) & {"tokens", "images", "processes", "reading"}:
        parser.error("give --coco DIR")
    report: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    report["machine"] = machine()
    for part in options.parts:
        print(f"\n## {part}\n", flush=True)
        options.known = report.get(part, [])
        for row in PARTS[part](options):
            report[part] = merged(report.get(part, []), row)
            if options.json:
                options.json.write_text(json.dumps(report, indent=1))
        print_table([{name: text(value) for name, value in row.items()} for row in report[part]])
    found = curves(report)
    report["slopes"] = [slope_row(name, points, target) for name, (_, points, target) in found.items()]
    print("\n## slopes\n")
    print_table(report["slopes"] or [{"curve": "none"}])
    print(f"\n{json.dumps(report['machine'])}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    if options.plots and found:
        options.plots.mkdir(parents=True, exist_ok=True)
        panels: dict[str, dict[str, Points]] = {}
        for name, (title, points, _) in found.items():
            if title.startswith("CPU"):  # In the table, for those who doubt the clock.
                continue
            panels.setdefault(title, {})[name.rsplit(": ", 1)[-1]] = points
        power_chart(panels).quantize(256).save(options.plots / "scaling.png", optimize=True)


def tokens(options: argparse.Namespace) -> Iterator[Row]:
    """Time and memory of one image's problem and its solution against the number of tokens."""
    for problem in options.pathways:
        measured = [one for one in options.known if one["problem"] == problem and one["seconds"] is not None]
        for side in options.sides:
            row: Row = {"problem": problem, "tokens": side**2}
            expected = estimate(
                [(one["tokens"], one["seconds"]) for one in measured if one["tokens"] < side**2], side**2
            )
            if expected > options.limit_seconds:
                why = f"skipped: at least {expected:,.0f} s expected from the points before"
                yield row | {"note": why}
                continue
            found = probed(options, kind="image", problem=problem, side=side)
            if "seconds" in found:
                measured.append(row | found)
            yield row | found


def images(options: argparse.Namespace) -> Iterator[Row]:
    """Time inside `fit`, and the peak of the process, against the number of images."""
    for pathway in [one for one in options.pathways if one in ("what", "where")]:
        done = [
            (one["images"], one["seconds"])
            for one in options.known
            if one["pathway"] == pathway and one["seconds"] is not None
        ]
        for count in options.counts:
            expected = estimate([one for one in done if one[0] < count], count)
            row: Row = {"pathway": pathway, "images": count}
            if expected > options.limit_seconds:
                yield row | {"note": f"skipped: about {expected:,.0f} s expected from the points before"}
                continue
            found = []
            while not found or (len(found) < options.repeats and found[0]["seconds"] < 10):
                found.append(in_fresh_process(FIT_MODULE, *probe_words(options, pathway, count)))
            middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
            done.append((count, middle["seconds"]))
            row |= {"seconds": middle["seconds"], "CPU, s": middle["cpu_seconds"], "peak, MiB": middle["peak_mib"]}
            yield row | {"note": f"median of {len(found)}"}


def layers(options: argparse.Namespace) -> Iterator[Row]:
    """One image, and a fit without a backbone, against the number of layers."""
    return synthetic_rows(options, "layers", [(count, WIDTH) for count in options.layers])


def width(options: argparse.Namespace) -> Iterator[Row]:
    """One image, and a fit without a backbone, against the width of the layers."""
    return synthetic_rows(options, "width", [(LAYERS, one) for one in options.widths])


def synthetic_rows(options: argparse.Namespace, axis: str, shapes: Sequence[tuple[int, int]]) -> Iterator[Row]:
    for count, wide in shapes:
        for name in ("what", "where"):
            row: Row = {"pathway": name, axis: count if axis == "layers" else wide}
            one = probed(options, kind="synthetic", problem=name, layers=count, width=wide)
            row |= {"image, s": one.get("seconds"), "image, CPU s": one.get("CPU, s")}
            gib = fit_gib(name, count, wide)
            if gib > options.limit_gib:
                yield row | {"note": f"fit skipped: it may take {gib:.1f} GiB"}
            else:
                yield row | probed(options, kind="fit", pathway=name, layers=count, width=wide)


def fit_gib(pathway: str, count: int, wide: int) -> float:
    """Most memory of a fit: the Gram matrix, its copy where layers are left out, and the evidence for their weights."""
    rank = wide + 1 if pathway == "what" else 2 * wide + 1
    blocks = rank**2 * count * (count + 1) / 2
    return 8 * (2 * blocks + 2 * count * rank**2) / 2**30


def processes(options: argparse.Namespace) -> Iterator[Row]:
    """`fit` in one and in two processes of one thread each."""
    yield from fit_processes(None, options)


def reading(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds a picture from its file to the backbone's input, and from there through the backbone."""
    yield probed(options, kind="reading", resolution=224)


def probed(options: argparse.Namespace, **asked: Any) -> Row:
    """Measure in a process of its own; one that dies is a row that says so."""
    words = ["--coco", str(options.coco), "--threads", str(options.threads), "--repeats", str(options.repeats)]
    try:
        return in_fresh_process(MODULE, *words, "--probe", json.dumps(asked))
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        return {"note": f"failed: ended with {error.returncode}: {last[:120]}"}


def probe_image(options: argparse.Namespace, problem: str, side: int) -> Row:
    """Measure one picture at so many tokens a side."""
    return solved(options, problem, picture_records(options, side))


def probe_synthetic(options: argparse.Namespace, problem: str, layers: int, width: int) -> Row:
    """Measure one synthetic image."""
    return solved(options, problem, synthetic_records(layers, width, SYNTHETIC_SIDE, 0))


def solved(options: argparse.Namespace, problem: str, records: list[AttentionRecord]) -> Row:
    """Build and solve the joint problem of some records, after a small one that warms up."""
    pathway, affinity = PROBLEMS[problem]
    config = SpectralConfig(pathway, affinity, num_eigenvectors=NUM_EIGENVECTORS)  # type: ignore[arg-type]
    solve(build_problem(synthetic_records(2, 128, 24, 0), config))
    before = start_peak()
    result: list[Any] = []
    row = timed(lambda: result.append(solve(build_problem(records, config))), options.repeats)
    peak = peak_mib() - before
    return row | {"peak above records, MiB": peak, "solver steps": result[-1].steps, "note": row.pop("note")}


def probe_fit(options: argparse.Namespace, pathway: str, layers: int, width: int) -> Row:
    """Measure both passes of an accumulator and its solution, the records given."""
    stacks = [synthetic_records(layers, width, FIT_SIDE, seed) for seed in range(FIT_IMAGES)]
    before = start_peak()
    room = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="auto"))  # type: ignore[arg-type]
    row: Row = {"columns": 0}
    passes: dict[str, Callable[[Iterable[AttentionRecord]], None]] = {"sums": room.add_sums, "Gram": room.add_gram}
    for name, add in passes.items():
        seconds = []
        for records in stacks:
            start = time.perf_counter()
            add(records)
            seconds.append(time.perf_counter() - start)
        row[f"{name}, s per image"] = statistics.median(seconds)
    start = time.perf_counter()
    room.solve(NUM_EIGENVECTORS)
    row["solve, s"] = time.perf_counter() - start
    row["columns"] = sum(layer.rank(pathway) for layer in room.layers)  # type: ignore[arg-type]
    return row | {"peak above records, MiB": peak_mib() - before}


def probe_reading(options: argparse.Namespace, resolution: int) -> Row:
    """Measure what a picture costs before the first product of this project."""
    pipe = default_pipe(options.threads)
    read, forward = [], []
    for path in pictures(options.coco)[:40]:
        start = time.perf_counter()
        inputs = pipe.preprocess(str(path), resolution=resolution)["inputs"]
        middle = time.perf_counter()
        with torch.no_grad():
            pipe.model(**inputs)
        read.append(middle - start)
        forward.append(time.perf_counter() - middle)
    return {
        "pixels, longer side": resolution,
        "read, s": statistics.median(read),
        "forward, s": statistics.median(forward),
        "pictures": len(read),
    }


def timed(action: Callable[[], object], repeats: int) -> Row:
    """Median seconds on the clock and on the processor; an action that takes 10 seconds is run once."""
    clock, cpu = [], []
    while not clock or (len(clock) < repeats and clock[0] < 10):
        start, busy = time.perf_counter(), time.process_time()
        action()
        clock.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return {
        "seconds": statistics.median(clock),
        "CPU, s": statistics.median(cpu),
        "note": f"median of {len(clock)}",
    }


def start_peak() -> float:
    """Forget the peak so far, and return the memory held now in MiB; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def picture_records(options: argparse.Namespace, side: int) -> list[AttentionRecord]:
    """Records of the first picture, its middle square, on a grid of so many tokens a side."""
    pipe = default_pipe(options.threads)
    shown = min(side, LARGEST_SIDE)
    patch = pipe.model.config.patch_size
    image = ImageOps.fit(read_image(pictures(options.coco)[0]), (shown * patch,) * 2, Image.Resampling.BICUBIC)
    with torch.no_grad(), capture_attention(pipe.model) as capture:
        pipe.model(**pipe.preprocess(image, resolution=shown * patch)["inputs"])
    records = capture.records
    if (records[0].grid.height, records[0].grid.width) != (shown, shown):
        raise ValueError(f"{shown} x {shown} tokens expected, {records[0].grid} came")
    if side == shown:
        return records

    def enlarged(part: Tensor) -> Tensor:
        maps = part[0].transpose(1, 2).reshape(1, -1, shown, shown)
        maps = interpolate(maps, size=(side, side), mode="bicubic")
        return maps.reshape(1, part.shape[1], part.shape[3], side**2).transpose(2, 3).contiguous()

    grid = TokenGrid(side, side)
    return [
        AttentionRecord(
            one.name, one.index, enlarged(one.query), enlarged(one.key), enlarged(one.value), one.scale, grid
        )
        for one in records
    ]


def synthetic_records(count: int, wide: int, side: int, seed: int) -> list[AttentionRecord]:
    """Layers of one image that share 128 random maps, the r-th of size 1 / r, in directions of each layer's own."""
    strengths = 1 / torch.arange(1, 129)
    maps = torch.randn(side**2, 128, generator=torch.Generator().manual_seed(seed)) * strengths
    records = []
    for index in range(count):
        own = torch.Generator().manual_seed(10_000 + index)  # The same in every image.
        noise = torch.Generator().manual_seed(20_000 + 100 * seed + index)
        query, key, value = (
            (maps @ torch.randn(128, wide, generator=own) + 0.05 * torch.randn(side**2, wide, generator=noise))
            .view(1, side**2, wide // HEAD_DIM, HEAD_DIM)
            .transpose(1, 2)
            for _ in range(3)
        )
        grid = TokenGrid(side, side)
        records.append(AttentionRecord(f"layer.{index}", index, query, key, value, HEAD_DIM**-0.5, grid))
    return records


def curves(report: dict[str, Any]) -> dict[str, tuple[str, list[tuple[float, float]], str]]:
    """Return the curves that a report holds: by name, the title of the panel, the points, and what was aimed at."""
    asked = [
        ("tokens", "problem", "tokens", "seconds", "seconds of one image against tokens", "at most 2.1"),
        ("tokens", "problem", "tokens", "CPU, s", "CPU seconds of one image against tokens", "at most 2.1"),
        ("tokens", "problem", "tokens", "peak above records, MiB", "MiB of one image against tokens", "-"),
        ("images", "pathway", "images", "seconds", "seconds of fit against images", "1.0 +- 0.1"),
        ("images", "pathway", "images", "CPU, s", "CPU seconds of fit against images", "1.0 +- 0.1"),
        ("images", "pathway", "images", "peak, MiB", "peak of fit in MiB against images", "0.0 +- 0.05"),
        ("layers", "pathway", "layers", "image, s", "seconds of one image against layers", "-"),
        ("layers", "pathway", "layers", "Gram, s per image", "seconds per image of the Gram pass against layers", "-"),
        ("width", "pathway", "width", "image, s", "seconds of one image against width", "-"),
        ("width", "pathway", "width", "Gram, s per image", "seconds per image of the Gram pass against width", "-"),
    ]
    found = {}
    for part, group, x, y, title, target in asked:
        rows = [row for row in report.get(part, []) if isinstance(row.get(y), (int, float)) and row[y] > 0]
        for name in dict.fromkeys(row[group] for row in rows):
            points = sorted((row[x], row[y]) for row in rows if row[group] == name)
            found[f"{title}: {name}"] = (title, points, target)
    return found


def estimate(points: Points, x: float) -> float:
    """Seconds expected at x: by the growth of the last step, at least in proportion."""
    points = sorted(dict(points).items())  # A point measured again counts once.
    if len(points) < 2:
        return 0.0
    (first, low), (last, high) = points[-2:]
    slope = max(1.0, math.log(high / low) / math.log(last / first))
    return float(high * (x / last) ** slope)


def merged(old: list[Row], new: Row) -> list[Row]:
    """Replace the old row of the same two leading values, keep the others; all rows get the same columns."""
    leading = tuple(new.values())[:2]
    rows = [row for row in old if tuple(row.values())[:2] != leading] + [new]
    groups = list(dict.fromkeys(next(iter(row.values())) for row in rows))
    if all(isinstance(list(row.values())[1], int) for row in rows):
        rows.sort(key=lambda row: (groups.index(next(iter(row.values()))), list(row.values())[1]))
    columns = dict.fromkeys(name for row in rows for name in row)
    columns = dict.fromkeys([name for name in columns if name != "note"] + (["note"] if "note" in columns else []))
    return [{name: row.get(name) for name in columns} for row in rows]


def text(value: Any) -> str:
    """A cell of a table: three digits, thousands told apart, nothing for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


PROBES = {"image": probe_image, "synthetic": probe_synthetic, "fit": probe_fit, "reading": probe_reading}
PARTS = {
    "tokens": tokens,
    "images": images,
    "layers": layers,
    "width": width,
    "processes": processes,
    "reading": reading,
}

if __name__ == "__main__":
    main()
