"""One setting changed at a time: what each default is worth, for one image and for a dataset.

    python -m tests.benchmarks.ablation [--bsds DIR] [--msrc DIR] [--parts image dataset] [--images N] [--json FILE]

`--bsds` holds `images/ID.*` and `labels/ID_ANNOTATOR.png`: mean covering and adjusted Rand index, the annotators'
median number of segments unless the row says otherwise. `--msrc` holds `images/ID.*` and `labels/ID.png`: one basis of
all pictures, read out as `tests.benchmarks.dataset` does. `what` unless the row says otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hf_spectral import BasisAccumulator, Exponential, SpectralBasis, SpectralConfig, build_problem, solve
from hf_spectral.metrics import adjusted_rand_index, covering
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.records import PATHWAYS, AttentionRecord
from hf_spectral.segmentation import segment
from tests.benchmarks.common import Labeled, default_pipe, load_labeled, machine, print_table
from tests.benchmarks.dataset import NUM_EIGENVECTORS, agreement, records_over
from tests.benchmarks.dataset_cost import Rows
from tests.benchmarks.single_image import records_and_tokens

# What a picture's row changes: settings of the problem, of `segment`, the resolution, or how eigenvectors are scaled.
IMAGE_ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "pathway where": {"pathway": "where"},
    "heads separate": {"heads": "separate"},
    "affinity cosine": {"affinity": "cosine"},
    "affinity knn": {"affinity": "knn"},
    "temperature 0.05": {"affinity": Exponential(0.05)},
    "temperature 0.1": {"affinity": Exponential(0.1)},
    "temperature 0.2": {"affinity": Exponential(0.2)},
    "8 eigenvectors": {"num_eigenvectors": 8},
    "24 eigenvectors": {"num_eigenvectors": 24},
    "32 eigenvectors": {"num_eigenvectors": 32},
    "eigenvectors not scaled by 1 - eigenvalue": {"scaled": False},
    "k-means": {"method": "kmeans"},
    "number of segments found": {"num_segments": "auto"},
    "automatic layer weights": {"layer_weights": "auto"},
    "first half of the layers": {"layers": tuple(range(6))},
    "second half of the layers": {"layers": tuple(range(6, 12))},
    **{f"layer {index} alone": {"layers": (index,)} for index in range(12)},
    "238 pixels": {"resolution": 238},
    "952 pixels": {"resolution": 952},
}
SEGMENT_SETTINGS = ("method", "num_segments")
DATASET_WALKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98)
DATASET_COUNTS = (16, 32, 64, 256)


def main() -> None:
    """Run the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsds", type=Path)
    parser.add_argument("--msrc", type=Path)
    parser.add_argument("--parts", nargs="+", choices=["image", "dataset"], required=True)
    parser.add_argument("--images", type=int, help="default: all")
    parser.add_argument("--image-resolution", type=int, default=476)
    parser.add_argument("--dataset-resolution", type=int, default=392)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pipe = default_pipe(options.threads)
    report: dict[str, Any] = {"machine": machine()}
    for part, run, folder in (("image", of_images, options.bsds), ("dataset", of_dataset, options.msrc)):
        if part in options.parts:
            if folder is None:
                parser.error(f"{part}: give its folder")
            print(f"\n## {part}\n", flush=True)
            report[part] = run(pipe, load_labeled(folder, options.images), options)
            print_table(report[part])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def of_images(pipe: SpectralPathwaysPipeline, pictures: Sequence[Labeled], options: argparse.Namespace) -> Rows:
    """Agreement of each picture's segments with its annotators', one row per setting."""
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for labeled in tqdm(pictures, disable=None):
        records: dict[int, list[AttentionRecord]] = {}
        for name, change in IMAGE_ROWS.items():
            resolution = change.get("resolution", options.image_resolution)
            if resolution not in records:
                records[resolution] = records_and_tokens(pipe, labeled.image, resolution)[0]
            labels = segments_of(records[resolution], labeled, change)
            scores[name].append((covering(labels, labeled.truths), adjusted_rand_index(labels, labeled.truths)))
    rows = []
    for name, values in scores.items():
        gains = [one[0] - plain[0] for one, plain in zip(values, scores["default"], strict=True)]
        rows.append(
            {
                "changed": name,
                "covering": statistics.mean(one[0] for one in values),
                "ARI": statistics.mean(one[1] for one in values),
                "covering above the default": f"{statistics.mean(gains):+.3f} ± {standard_error(gains):.3f}",
                "images": len(values),
            }
        )
    return rows


def segments_of(records: Sequence[AttentionRecord], labeled: Labeled, change: dict[str, Any]) -> Tensor:
    """Cut one picture with one setting changed."""
    cut = {"num_segments": labeled.num_segments} | {key: change[key] for key in SEGMENT_SETTINGS if key in change}
    fields = {key: value for key, value in change.items() if key not in (*SEGMENT_SETTINGS, "resolution", "scaled")}
    found = solve(build_problem(records, SpectralConfig(**fields)))
    values = found.eigenvalues if change.get("scaled", True) else torch.zeros_like(found.eigenvalues)
    return segment(found.eigenvectors, values, image=labeled.image, **cut).labels


def of_dataset(pipe: SpectralPathwaysPipeline, pictures: Sequence[Labeled], options: argparse.Namespace) -> Rows:
    """Agreement of a dataset's clusters with its classes, one row per setting."""
    rooms = {pathway: BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="auto")) for pathway in PATHWAYS}
    for step in ("add_sums", "add_gram"):
        for records in records_over(pipe, pictures, options.dataset_resolution):
            for room in rooms.values():
                getattr(room, step)(records)
    room = rooms["what"]
    largest = room.solve(max(DATASET_COUNTS))
    bases: dict[str, tuple[SpectralBasis, float | None]] = {"default": (room.solve(NUM_EIGENVECTORS), None)}
    bases["equal layer weights"] = (room.solve(NUM_EIGENVECTORS, layer_weights="equal"), None)
    bases["pathway where"] = (rooms["where"].solve(NUM_EIGENVECTORS), None)
    half = len(room.layers) // 2
    for name, layers in (("first", range(half)), ("second", range(half, 2 * half))):
        weights = dict.fromkeys(layers, 1.0)
        bases[f"{name} half of the layers"] = (room.solve(NUM_EIGENVECTORS, layer_weights=weights), None)
    for name in ("default", "equal layer weights", "pathway where"):
        for walk in DATASET_WALKS:
            bases[f"{name}, diffusion {walk}".removeprefix("default, ")] = (bases[name][0], walk)
    maps: dict[str, list[Tensor]] = defaultdict(list)
    for records in records_over(pipe, pictures, options.dataset_resolution):
        for name, (basis, walk) in bases.items():
            maps[name].append(basis.project(records, walk=walk).eigenvectors)
        all_of_them = largest.project(records).eigenvectors
        for count in DATASET_COUNTS:
            maps[f"{count} eigenvectors"].append(all_of_them[:count])
    return [{"changed": name, **agreement(found, pictures)} for name, found in maps.items()]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 for a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
