"""What `fit` and `transform` would need on datasets and machines that were not at hand: counted, not measured.

    python -m tests.benchmarks.beyond [--scaling scaling.json] [--output tests/benchmarks/beyond_one_machine.md]

Bytes and operations are counted from the shapes that the code forms. Rates are assumptions, given as options; only the
figures of `python -m tests.benchmarks.scaling` in `--scaling` were measured, on one thread of one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_spectral.basis.eigen import _MAX_STEPS
from hf_spectral.basis.gram import _ROWS
from hf_spectral.basis.sums import _STRIDE
from hf_spectral.dataset.rows import PART_ROWS
from tests.benchmarks.common import print_table

FIT_PASSES = 2
GPUS = (1, 8, 64)
PIXELS = 224
GIB = 2**30
BOUND = 12_000  # `max_width` in the example of the page

COUNTED = """\
D is the sum of the layers' columns: width + 1 each for what, 2 width + 1 for where. `fit` runs the backbone {passes}
times over the images: for the sums (D numbers), then for the Gram matrix, of which the blocks on and above the diagonal
are kept in float64, beside two matrices per layer as evidence for automatic layer weights. Products are made in float32
and added in float64, so that each image moves the whole matrix once (traffic). Solving is an upper bound ({steps}
products, {eigenvectors} eigenvectors); D^3 is what a dense solver would take, times a small constant: only small D do.
"""
ASSUMED = """\
Assumed of each GPU: {forward:,g} GFLOP/s in the forward pass, {products:,g} in products (float32), {float64:,g} in
float64, {memory:,g} GB/s of memory, {network:g} GB/s of network, {disk:g} GB/s of disk. There is one process per GPU,
which reads its own pictures between two batches, {read:.1f} ms each ({source}), and a save every {every:,} images.
Memory of a process: backbone, one layer of one batch, Gram and evidence of the table above; in the first one also a
copy of the Gram matrix where layers are left out. Disk: twice Gram and evidence per process, as a save is written
beside the last one. Sent, saves: of each process, in the whole run.
"""
VERDICTS = """\
1. **Time: {first}** ({share:.0%} of `fit` for {small}, what, on ImageNet with 8 GPUs), then {second}. Counted
   with `num_workers=0`: pictures are read in line with the backbone. Threads that read ahead, more processes, and
   `degree_images`, which reads and runs all but a few pictures once, shorten it.
2. **Checkpoints of wide backbones.** {base}, where, saves {held:.1f} GB ({save:.1f} s) every {every:,} images, which
   take {run:.1f} s to read and run. `checkpoint_every` has to grow with D^2: {seldom:,} images keep saving near 2 %.
3. **Memory: the Gram matrix**, whatever the number of images: {widest:.0f} GiB for {last}, where. `max_width={bound}`
   bounds it to about {bounded:.1f} GiB (`basis.factors.reduced` gives the error), `layers=` leaves layers out.
   Timesteps of a denoiser count as layers.
4. **A stream on many processes**: each reads past the images of the others, {passes} x {stream:,.0f} TB for the crawl.
   A `datasets.Dataset` (files mapped into memory) is cut into blocks instead; of a folder every process holds all
   paths.
5. **`transform` at a billion images**: {parts:,} files of {rows} rows, the list of them written anew with each, places
   ({places:.0f} bytes per image) gathered in every process. Nothing is done about it: cut the dataset into shards and
   call `transform` on each with the same basis. Eigenvectors then agree between shards; numbers of segments do not,
   since each call finds its own clusters.
6. **Not the solver, nor the network**: one all-reduce and one solution whatever the number of images, at most
   {serial:.1f} s in the case of point 1. Only the first process solves.
7. **Not precision, as far as counted**: sums are float64, counts are 64-bit integers, and the rounding of a float32
   product enters once per image. A billion images were not tried.
"""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Shapes of a vision transformer with an MLP four times as wide as its tokens."""

    name: str
    layers: int
    width: int
    patch: int = 14

    def tokens(self, pixels: int = PIXELS) -> int:
        """Patches of a square picture; the class token counts in the forward pass only."""
        return (pixels // self.patch) ** 2

    def ranks(self, pathway: str) -> list[int]:
        """Columns of each layer's factor."""
        return [self.width + 1 if pathway == "what" else 2 * self.width + 1] * self.layers


BACKBONES = (Backbone("ViT-S/14", 12, 384), Backbone("ViT-B/14", 12, 768), Backbone("ViT-L/14", 24, 1024))
BACKBONES += (Backbone("ViT-g/14", 40, 1536),)
# Images, and bytes of a picture: of the two published sets their size on disk divided by their images, of the crawl a
# guess.
DATASETS = {"COCO train": (118_287, 163e3), "ImageNet train": (1_281_167, 115e3), "a crawl": (1_000_000_000, 100e3)}


def forward_flop(backbone: Backbone, pixels: int = PIXELS) -> float:
    """Operations of one forward pass, a multiplication and an addition counting two."""
    tokens, wide = backbone.tokens(pixels) + 1, backbone.width
    patches = 2 * backbone.tokens(pixels) * 3 * backbone.patch**2 * wide
    projections, mlp, attention = 8 * tokens * wide**2, 16 * tokens * wide**2, 4 * tokens**2 * wide
    return patches + backbone.layers * (projections + mlp + attention)


def upper_entries(ranks: Sequence[int]) -> int:
    """Numbers of the blocks on and above the diagonal of the Gram matrix: about half of D^2, D the sum of the ranks."""
    return (sum(ranks) ** 2 + sum(rank**2 for rank in ranks)) // 2


def gram_flop(ranks: Sequence[int], tokens: int) -> float:
    """Operations that add one image to the Gram matrix: about T D^2."""
    return 2.0 * tokens * upper_entries(ranks)


def evidence_flop(ranks: Sequence[int], tokens: int) -> float:
    """Operations of one image's evidence for automatic layer weights: cosines of every eighth token, and two products.

    The cosines of a token need all columns but the constant one: of queries and keys they are two products.
    """
    asking = -(-tokens // _STRIDE)
    return sum(2.0 * asking * (tokens * (rank - 1) + tokens * rank + 2 * rank**2) for rank in ranks)


def gram_bytes(ranks: Sequence[int]) -> int:
    """Bytes of the Gram matrix, float64: held by every process, summed over the network, saved in checkpoints."""
    return 8 * upper_entries(ranks)


def evidence_bytes(ranks: Sequence[int]) -> int:
    """Bytes of both evidence matrices of all layers, float64."""
    return 16 * sum(rank**2 for rank in ranks)


def gram_traffic(ranks: Sequence[int], tokens: int) -> float:
    """Bytes that adding one image moves: a product in float32 written and read, a sum in float64 read and written."""
    return 24.0 * upper_entries(ranks) * math.ceil(tokens / _ROWS)


def pass_flop(ranks: Sequence[int], tokens: int) -> float:
    """Operations of the second pass on one image, beside the backbone's."""
    return gram_flop(ranks, tokens) + evidence_flop(ranks, tokens)


def held_bytes(ranks: Sequence[int]) -> int:
    """Bytes that every process holds, sends and saves."""
    return gram_bytes(ranks) + evidence_bytes(ranks)


def ring_bytes(size: float, processes: int) -> float:
    """Bytes that each process sends in a ring all-reduce."""
    return 2 * (processes - 1) / processes * size


def solve_flop(ranks: Sequence[int], num_eigenvectors: int) -> float:
    """Most operations of the block Krylov solver: all its steps, two products with the whole block each."""
    block = num_eigenvectors + max(8, num_eigenvectors // 4)
    return 2.0 * sum(ranks) ** 2 * block * 2 * _MAX_STEPS


@dataclasses.dataclass(frozen=True)
class Rates:
    """Assumptions about one GPU and its process, in SI units."""

    forward: float
    products: float
    float64: float
    memory: float
    network: float
    disk: float
    read: float


def hours(backbone: Backbone, pathway: str, images: int, gpus: int, rates: Rates, every: int, eigenvectors: int) -> Any:
    """Hours of each step of `fit`, steps one after the other as the code runs them."""
    ranks, tokens = backbone.ranks(pathway), backbone.tokens()
    held = held_bytes(ranks)
    share = images / gpus
    products = pass_flop(ranks, tokens)
    seconds = {
        "reading": FIT_PASSES * share * rates.read,
        "forward": FIT_PASSES * share * forward_flop(backbone) / rates.forward,
        "Gram": share * (products / rates.products + gram_traffic(ranks, tokens) / rates.memory),
        "checkpoints": share / every * held / rates.disk,
        "all-reduce": ring_bytes(held, gpus) / rates.network,
        "solving": solve_flop(ranks, eigenvectors) / rates.float64,
    }
    return {name: one / 3600 for name, one in seconds.items()}


def shapes_table(eigenvectors: int) -> list[dict[str, str]]:
    rows = []
    for backbone in BACKBONES:
        for pathway in ("what", "where"):
            ranks, tokens = backbone.ranks(pathway), backbone.tokens()
            width = sum(ranks)
            rows.append(
                {
                    "backbone": f"{backbone.name}, {pathway}",
                    "D": f"{width:,}",
                    "forward, GFLOP": f"{forward_flop(backbone) / 1e9:.1f}",
                    "Gram, GFLOP": f"{gram_flop(ranks, tokens) / 1e9:.1f}",
                    "evidence, GFLOP": f"{evidence_flop(ranks, tokens) / 1e9:.2f}",
                    "Gram traffic, GB": f"{gram_traffic(ranks, tokens) / 1e9:.2f}",
                    "Gram, GiB": f"{gram_bytes(ranks) / GIB:.2f}",
                    "evidence, GiB": f"{evidence_bytes(ranks) / GIB:.2f}",
                    "solving, at most, TFLOP": f"{solve_flop(ranks, eigenvectors) / 1e12:.2g}",
                    "D^3, TFLOP": f"{width**3 / 1e12:.2g}",
                }
            )
    return rows


def fit_table(rates: Rates, every: int, eigenvectors: int) -> list[dict[str, str]]:
    rows = []
    for backbone, pathway in ((BACKBONES[0], "what"), (BACKBONES[1], "where")):
        ranks = backbone.ranks(pathway)
        held = held_bytes(ranks)
        work = FIT_PASSES * forward_flop(backbone) + pass_flop(ranks, backbone.tokens())
        for name, (images, _) in DATASETS.items():
            for gpus in GPUS:
                found = hours(backbone, pathway, images, gpus, rates, every, eigenvectors)
                longest = max(found, key=lambda one: found[one])
                rows.append(
                    {
                        "fit": f"{backbone.name}, {pathway}, {name}",
                        "GPUs": gpus,
                        "forward passes": f"{FIT_PASSES * images / gpus:.3g}",
                        "EFLOP": f"{images * work / 1e18:.3g}",
                        "sent, GB": f"{ring_bytes(held, gpus) / 1e9:.2g}",
                        "saves, TB": f"{images / gpus / every * held / 1e12:.2g}",
                        **{f"{one}, h": f"{found[one]:.2g}" for one in ("reading", "forward", "Gram", "checkpoints")},
                        "all-reduce and solving, s": f"{3600 * (found['all-reduce'] + found['solving']):.2g}",
                        "all, h": f"{sum(found.values()):.3g}",
                        "longest": f"{longest}, {found[longest] / sum(found.values()):.0%}",
                    }
                )
    return rows


def transform_table(eigenvectors: int, path_bytes: float, place_bytes: float) -> list[dict[str, str]]:
    rows = []
    for name, (images, picture) in DATASETS.items():
        maps = images * eigenvectors * BACKBONES[0].tokens() * 2
        parts = math.ceil(images / PART_ROWS)
        listing = len(json.dumps({"_data_files": [{"filename": "data-00000-00000.arrow"}]}, indent=2)) * 0.8
        rows.append(
            {
                "transform": name,
                "maps, TB": f"{maps / 1e12:.3g}",
                "pictures, TB": f"{images * picture / 1e12:.3g}",
                "files": f"{parts:,}",
                "lists of files written, TB": f"{listing * parts * (parts + 1) / 2 / 1e12:.3g}",
                "places held by each process, GB": f"{images * place_bytes / 1e9:.3g}",
                "paths of a folder, held by each process, GB": f"{images * path_bytes / 1e9:.3g}",
                "a stream read by each process for fit, TB": f"{FIT_PASSES * images * picture / 1e12:.3g}",
            }
        )
    return rows


def object_bytes(make: Any, count: int = 20_000) -> float:
    """Bytes that Python takes for each of many objects."""
    tracemalloc.start()
    kept = [make(number) for number in range(count)]
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size / len(kept)


def measured_lines(report: dict[str, Any]) -> list[str]:
    """What was measured, and what it says about COCO train on that one thread."""
    lines = [
        f"- {row['curve']}: slope {row['slope']} from {row['from']} to {row['to']} (last step {row['last step']})"
        for row in report.get("slopes", [])
        if "images" in row["curve"] or "one image against tokens" in row["curve"]
        if not row["curve"].startswith("CPU")
    ]
    for pathway in ("what", "where"):
        rows = [row for row in report.get("images", []) if row["pathway"] == pathway and row["seconds"] is not None]
        if len(rows) > 1:
            first, last = rows[-2:]
            each = (last["seconds"] - first["seconds"]) / (last["images"] - first["images"])
            count = DATASETS["COCO train"][0]
            lines.append(
                f"- fit, {pathway}, 112 pixels: {each:.3f} s for each further image between {first['images']:,} and "
                f"{last['images']:,}, peak {last['peak, MiB']:,.0f} MiB; COCO train would take that thread "
                f"{each * count / 3600:,.1f} h"
            )
    for row in report.get("reading", []):
        pixels, read, forward = row["pixels, longer side"], row["read, s"], row["forward, s"]
        lines.append(f"- a picture at {pixels} pixels: {1e3 * read:.1f} ms to read, {1e3 * forward:.1f} ms forward")
    for row in report.get("width", []):
        if row.get("Gram, s per image") and row["width"] in (384, 768):
            ranks = Backbone("", 12, row["width"]).ranks(row["pathway"])
            work = pass_flop(ranks, 256)
            lines.append(
                f"- Gram pass, {row['pathway']}, width {row['width']}, 256 tokens: {row['Gram, s per image']:.3f} s "
                f"per image, {work / row['Gram, s per image'] / 1e9:.0f} GFLOP/s of the operations counted below"
            )
    return lines


def page(report: dict[str, Any], rates: Rates, every: int, eigenvectors: int, from_file: bool) -> str:
    """Write the page."""
    out = io.StringIO()
    paths = object_bytes(lambda i: (path := Path(f"train/{i:012d}.jpg"), path.relative_to("train").as_posix()))
    places = object_bytes(lambda i: 1000 + i)
    machine = report.get("machine", {})
    with contextlib.redirect_stdout(out):
        print("# Beyond one machine: an estimate\n")
        print("Written by `python -m tests.benchmarks.beyond --scaling scaling.json`; nothing here was run on a GPU.")
        if report:
            print(
                f"\n## Measured\n\nOne thread, {machine.get('processor')}, {machine.get('date')}, "
                "`python -m tests.benchmarks.scaling`, DINOv2-small:\n"
            )
            print("\n".join(measured_lines(report)))
        print(f"\n## Counted, one image of {PIXELS} pixels ({BACKBONES[0].tokens()} tokens)\n")
        print(COUNTED.format(passes=FIT_PASSES, steps=2 * _MAX_STEPS, eigenvectors=eigenvectors))
        print_table(shapes_table(eigenvectors))
        print("\n## `fit` on 1, 8 and 64 GPUs\n")
        assumed = {field.name: getattr(rates, field.name) / 1e9 for field in dataclasses.fields(rates)}
        assumed |= {"read": 1e3 * rates.read, "source": "measured above" if from_file else "assumed", "every": every}
        print(ASSUMED.format(**assumed))
        print_table(fit_table(rates, every, eigenvectors))
        print(f"\n## `transform`, {eigenvectors} eigenvectors in float16, pictures inside the rows, one pass\n")
        print_table(transform_table(eigenvectors, paths, places))
        print("\n## What breaks first\n")
        print(verdicts(rates, every, eigenvectors, places))
    return out.getvalue()


def verdicts(rates: Rates, every: int, eigenvectors: int, places: float) -> str:
    """Say which step breaks first and what is done about it, by the figures of the tables."""
    small, base, last = BACKBONES[0], BACKBONES[1], BACKBONES[-1]
    found = hours(small, "what", DATASETS["ImageNet train"][0], 8, rates, every, eigenvectors)
    order = sorted(found, key=lambda one: -found[one])
    held = held_bytes(base.ranks("where"))
    save = held / rates.disk
    run = every * (rates.read + forward_flop(base) / rates.forward)
    crawl, picture = DATASETS["a crawl"]
    return VERDICTS.format(
        first=order[0],
        share=found[order[0]] / sum(found.values()),
        second=order[1],
        small=small.name,
        base=base.name,
        last=last.name,
        held=held / 1e9,
        save=save,
        every=every,
        run=run,
        seldom=math.ceil(every * save / run / 0.02 / 1000) * 1000,
        widest=gram_bytes(last.ranks("where")) / GIB,
        bound=BOUND,
        bounded=8 * BOUND**2 / 2 / GIB,
        passes=FIT_PASSES,
        stream=crawl * picture / 1e12,
        parts=math.ceil(crawl / PART_ROWS),
        rows=PART_ROWS,
        places=places,
        serial=3600 * (found["all-reduce"] + found["solving"]),
    )


def main() -> None:
    """Write the page and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scaling", type=Path, help="what tests.benchmarks.scaling wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "beyond_one_machine.md")
    parser.add_argument("--forward-tflops", type=float, default=30, help="assumed, sustained")
    parser.add_argument("--product-tflops", type=float, default=15, help="assumed, float32")
    parser.add_argument("--float64-tflops", type=float, default=5, help="assumed")
    parser.add_argument("--memory-tb", type=float, default=1.5, help="assumed, a second")
    parser.add_argument("--network-gb", type=float, default=10, help="assumed, a second and process")
    parser.add_argument("--disk-gb", type=float, default=1, help="assumed, a second and process")
    parser.add_argument("--read-ms", type=float, help="a picture; default: what --scaling measured, or 10")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--num-eigenvectors", type=int, default=32)
    options = parser.parse_args()
    report = json.loads(options.scaling.read_text()) if options.scaling else {}
    measured = [row["read, s"] for row in report.get("reading", [])]
    from_file = options.read_ms is None and bool(measured)
    read = measured[0] if from_file else (10 if options.read_ms is None else options.read_ms) / 1e3
    tera = [options.forward_tflops, options.product_tflops, options.float64_tflops, options.memory_tb]
    rates = Rates(*(1e12 * one for one in tera), 1e9 * options.network_gb, 1e9 * options.disk_gb, read)
    words = page(report, rates, options.checkpoint_every, options.num_eigenvectors, from_file)
    options.output.write_text(words)
    print(words)


if __name__ == "__main__":
    main()
