"""Layer weights found without labels, against equal ones and against subsets of layers chosen with the labels in hand.

    python -m tests.benchmarks.layer_weights [--msrc DIR] [--bsds DIR] [--images N] [--json FILE]

`--msrc` holds `images/ID.*` and `labels/ID.png` (class of each pixel, 0 for void): one basis of all pictures for each
row, 64 eigenvectors, read out as `tests.benchmarks.dataset` does, mean and range over seeds of the clusters.
`--bsds` holds `images/ID.*` and `labels/ID*.png`, one per annotator: one problem per picture, mean covering and
adjusted Rand index with the annotators' median number of segments, and with the number found by itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from hf_spectral import BasisAccumulator, SpectralConfig, build_problem, solve
from hf_spectral.metrics import adjusted_rand_index, covering
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.records import PATHWAYS
from hf_spectral.segmentation import segment
from tests.benchmarks.common import default_pipe, load_labeled, machine, print_table
from tests.benchmarks.dataset import NUM_EIGENVECTORS, agreement, records_over
from tests.benchmarks.dataset_cost import Rows
from tests.benchmarks.single_image import records_and_tokens

Weights = str | Mapping[int, float]


def main() -> None:
    """Run the parts whose data is given and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--msrc", type=Path)
    parser.add_argument("--bsds", type=Path)
    parser.add_argument("--pathways", nargs="+", choices=PATHWAYS, default=list(PATHWAYS))
    parser.add_argument("--images", type=int, help="default: all")
    parser.add_argument("--dataset-resolution", type=int, default=392)
    parser.add_argument("--image-resolution", type=int, default=952)
    parser.add_argument("--seeds", type=int, default=3, help="of the clusters of a dataset")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pipe = default_pipe(options.threads)
    report: dict[str, Any] = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}}
    for name, part, folder in (("dataset", of_dataset, options.msrc), ("one image", of_images, options.bsds)):
        if folder is not None:
            print(f"\n## {name}\n", flush=True)
            report[name] = part(pipe, options)
            print_table(report[name])
    print(f"\n{json.dumps(report['machine'])}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def of_dataset(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """Agreement of the clusters with the labels, a row for each way to weigh."""
    labeled = load_labeled(options.msrc, options.images)
    rows = []
    for pathway in options.pathways:
        room = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="auto"))
        for add in (room.add_sums, room.add_gram):
            for records in records_over(pipe, labeled, options.dataset_resolution):
                add(records)
        bases = {
            name: room.solve(NUM_EIGENVECTORS, layer_weights=weights)
            for name, weights in ways(len(room.layers), options.rows).items()
        }
        maps: dict[str, list[Tensor]] = defaultdict(list)
        for records in records_over(pipe, labeled, options.dataset_resolution):
            for name, basis in bases.items():
                maps[name].append(basis.project(records).eigenvectors)
        for name, basis in bases.items():
            used = " ".join(
                f"{layer.index}:{weight:.2f}" for layer, weight in zip(basis.layers, basis.weights, strict=True)
            )
            rows.append(
                {"pathway": pathway, "layers": name, **agreement(maps[name], labeled, options.seeds), "weights": used}
            )
    return rows


def of_images(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """Agreement of each picture's segments with the annotators', a row for each way to weigh."""
    scores: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for labeled in tqdm(load_labeled(options.bsds, options.images), disable=None):
        records, _, _ = records_and_tokens(pipe, labeled.image, options.image_resolution)
        for pathway in options.pathways:
            for name, weights in ways(len(records), options.rows).items():
                found = solve(build_problem(records, SpectralConfig(pathway, layer_weights=weights)))
                values: list[float] = []
                for count in (labeled.num_segments, "auto"):
                    labels = segment(found, num_segments=count, image=labeled.image).labels
                    values += [covering(labels, labeled.truths), adjusted_rand_index(labels, labeled.truths)]
                scores[pathway, name].append(values)
    columns = ("covering", "ARI", "covering, number found", "ARI, number found")
    return [
        {"pathway": pathway, "layers": name}
        | dict(zip(columns, map(statistics.mean, zip(*values, strict=True)), strict=True))
        | {"images": len(values)}
        for (pathway, name), values in scores.items()
    ]


def ways(num_layers: int, wanted: list[str] | None) -> dict[str, Weights]:
    """Equal and automatic weights, and contiguous subsets: halves, thirds, the last few, each layer alone."""
    half, third = num_layers // 2, num_layers // 3
    subsets = {(0, half), (half, num_layers)} | {(i * third, (i + 1) * third) for i in range(3)}
    subsets |= {(start, num_layers) for start in range(1, num_layers)} | {(i, i + 1) for i in range(num_layers)}
    found: dict[str, Weights] = {"equal": "equal", "auto": "auto"}
    found |= {f"{start}-{stop - 1}": dict.fromkeys(range(start, stop), 1.0) for start, stop in sorted(subsets)}
    return {name: weights for name, weights in found.items() if wanted is None or name in wanted}


if __name__ == "__main__":
    main()
