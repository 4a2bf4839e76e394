"""A whole dataset: time and memory against plain forward passes, quality against human labels and against peers.

    python -m tests.benchmarks.dataset --coco DIR --msrc DIR [--parts PART ...] [--images N] [--json FILE]

The folder of `--coco` holds pictures without labels; that of `--msrc` holds `images/ID.*` and `labels/ID.png` (class of
each pixel, 0 for void). `--images N` takes N of each, for a trial. Every method is read out with the true number of
classes and soft upsampling to the pixels of the label maps, void left out: ours by `semantic_segmentation`, peers, and
the row that says so, by k-means of unit rows of the same sample of tokens. Mean and range over three seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from tqdm import tqdm

from hf_spectral import BasisAccumulator, SpectralConfig
from hf_spectral.clusters import Clusters, unit_rows
from hf_spectral.metrics import (
    majority_miou,
    matched_accuracy,
    matched_miou,
    normalized_mutual_information,
    purity,
    where_score,
)
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.pipelines.images import read_image
from hf_spectral.records import PATHWAYS, AttentionRecord
from hf_spectral.report import score_layers
from hf_spectral.segmentation import (
    find_clusters,
    label_image,
    leading_eigenvectors,
    sample_tokens,
    semantic_segmentation,
    upsample,
)
from hf_spectral.solvers import DatasetGradientSolver
from tests.benchmarks.common import (
    BACKBONES,
    Labeled,
    default_pipe,
    load_labeled,
    machine,
    print_table,
)
from tests.benchmarks.dataset_cost import Rows, memory, pictures, probe, processes, speed
from tests.benchmarks.single_image import records_and_tokens

Scores = dict[str, list[float]]
Labeling = Callable[[Sequence[Tensor], int, Sequence[tuple[int, int]], int], list[Tensor]]
NUM_EIGENVECTORS = 128
FEWER = (32, 64)
EXACT_RESOLUTION = 112
VOID = 0
SEEDS = 3
MEASURES = {
    "NMI": normalized_mutual_information,
    "matched mIoU": matched_miou,
    "pixel accuracy": matched_accuracy,
    "majority mIoU": majority_miou,
    "purity": purity,
}


def main() -> None:
    """Run the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--msrc", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--images", type=int, help="default: all")
    parser.add_argument("--resolution", type=int, default=392)
    parser.add_argument("--single-layers", type=int, nargs="*", help="layers to try alone; default: each")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--gradient-images", type=int, default=40)
    parser.add_argument("--gradient-resolution", type=int, default=224)
    parser.add_argument("--gradient-rounds", type=int, default=60)
    parser.add_argument("--memory-images", type=int, nargs="+", default=[50, 100, 400])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", choices=list(BACKBONES), default="dinov2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--probe", nargs=3, metavar=("PATHWAY", "COUNT", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        probe(options)
        return
    pipe = default_pipe(options.threads, options.backbone)
    report: dict[str, Any] = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}}
    for part in options.parts:
        folder = PARTS[part][1]
        if getattr(options, folder) is None:
            print(f"\n## {part}: skipped, give --{folder} DIR", flush=True)
            continue
        print(f"\n## {part}\n", flush=True)
        report[part] = PARTS[part][0](pipe, options)
        print_table(report[part])
    print(f"\n{json.dumps(report['machine'])}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def scores(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """Where-, what- and image-score of all layers and of each alone, means of eigenvectors 1 to 12."""
    paths = pictures(options.coco)[: options.images]

    def images() -> Iterator[Sequence[AttentionRecord]]:
        return (records_and_tokens(pipe, read_image(path), options.resolution)[0] for path in paths)

    report = score_layers(images, progress=sys.stderr.isatty())
    if options.json:
        report.chart().save(options.json.with_suffix(".layers.png"))
    rows = [
        {
            "pathway": row.pathway,
            "layer": "all" if row.layer is None else row.layer,
            "where-score": row.where_score,
            "what-score": row.what_score,
            "image-score": row.image_score,
            "images": row.num_images,
        }
        for row in report.rows
    ]
    bases = {name: accumulated(images, name).solve(13) for name in ("where", "what")}
    for name, basis in bases.items():
        for walk in (None, 0, 0.8):
            maps = [basis.project(one, walk).eigenvectors[1:] for one in images()]
            told = "default walk" if walk is None else f"walk {walk}"
            print(f"{name}, {told}: metrics.where_score {float(where_score(maps).mean()):.3f}", flush=True)
    return rows


def exact(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """The streamed basis of twelve small pictures against the dense eigenvectors of the matrix of all their tokens."""
    from tests.dense import dense_joint, rows_of

    paths = pictures(options.coco)[:12]
    images = [records_and_tokens(pipe, read_image(path), EXACT_RESOLUTION)[0] for path in paths]
    rows = []
    for pathway in PATHWAYS:
        affinity, mass = dense_joint(images, pathway)
        values, vectors = scipy.linalg.eigh(affinity, mass)
        count = 12
        basis = accumulated(lambda: iter(images), pathway).solve(count, layer_weights="equal")
        found = 1 - basis.eigenvalues.double().numpy()
        angles = scipy.linalg.subspace_angles(rows_of(basis, images), vectors[:, ::-1][:, :count])
        rows.append(
            {
                "pathway": pathway,
                "tokens": len(values),
                "eigenvectors": count,
                "largest error of an eigenvalue": f"{np.abs(found - values[::-1][:count]).max():.1e}",
                "largest angle of the subspace": f"{angles.max():.1e}",
            }
        )
    return rows


def quality(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """Agreement with the labels of all layers, of single layers, and of peers on the last hidden state."""
    labeled = load_labeled(options.msrc, options.images)
    room = accumulated(lambda: records_over(pipe, labeled, options.resolution), "what")
    bases = {"hf_spectral, what, all layers": room.solve(NUM_EIGENVECTORS)}
    bases["hf_spectral, what, equal weights"] = room.solve(NUM_EIGENVECTORS, layer_weights="equal")
    for layer in room.layers:
        if options.single_layers is not None and layer.index not in options.single_layers:
            continue
        alone = room.solve(NUM_EIGENVECTORS, layer_weights={layer.index: 1})
        bases[f"hf_spectral, what, layer {layer.index} alone"] = alone
    first = next(iter(bases))
    bases |= {f"{first}, {count} eigenvectors": room.solve(count) for count in FEWER}
    maps: dict[str, list[Tensor]] = {name: [] for name in (*bases, f"{first}, no diffusion")}
    seconds = dict.fromkeys(bases, 0.0)
    hidden: list[Tensor] = []
    for one in tqdm(labeled, disable=None):
        records, tokens, grid = records_and_tokens(pipe, one.image, options.resolution)
        hidden.append(tokens.T.reshape(-1, *grid))
        for name, basis in bases.items():
            start = time.perf_counter()
            maps[name].append(basis.project(records).eigenvectors)
            seconds[name] += time.perf_counter() - start
        maps[f"{first}, no diffusion"].append(bases[first].project(records, walk=0).eigenvectors)
    rows = [{"method": name, **agreement(found, labeled)} for name, found in maps.items()]
    plain = {f"{first}, k-means": maps[first], "k-means, last hidden state": [padded(one) for one in hidden]}
    plain["ncut-pytorch, last hidden state"] = [padded(one) for one in ncut_maps(hidden)]
    rows += [{"method": name, **agreement(found, labeled, labeling=plain_kmeans)} for name, found in plain.items()]
    for row in rows:
        name = row["method"]
        row["projection, s / image"] = seconds[name] / len(labeled) if name in seconds else "-"
        row["row, kB"] = sum(one.numel() for one in maps[name]) * 2 / 1000 / len(labeled) if name in maps else "-"
    return rows


def unseen(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """Basis and clusters of every second image, and of the others: agreement on those fitted, and on those not.

    Both ways, because one half of the images may be easier to cluster than the other. Those not fitted get the clusters
    of the others, and clusters found anew in the same eigenvectors, which tells what of the loss is the basis's.
    """
    labeled = load_labeled(options.msrc, options.images)
    halves = {"even": labeled[::2], "odd": labeled[1::2]}
    found: dict[tuple[str, str], Scores] = {}
    for source, images in halves.items():
        room = accumulated(partial(records_over, pipe, images, options.resolution), "what")
        basis = room.solve(NUM_EIGENVECTORS)
        maps = {
            name: [basis.project(records).eigenvectors for records in records_over(pipe, half, options.resolution)]
            for name, half in halves.items()
        }
        other = next(name for name in halves if name != source)
        clusters = {name: clusters_of(maps[name], half) for name, half in halves.items()}
        for state, taken, name in (
            ("fitted", source, source),
            ("unseen", source, other),
            ("unseen, clusters found anew", other, other),
        ):
            sizes = [one.truths[0].shape for one in halves[name]]
            labels = [labeled_images(maps[name], one, sizes) for one in clusters[taken]]
            found[state, name] = measured(labels, halves[name])
    rows = []
    for state in dict.fromkeys(state for state, _ in found):
        told = {name: found[state, name] for name in halves}
        told["both"] = {measure: told["even"][measure] + told["odd"][measure] for measure in told["even"]}
        rows += [{"images": state, "half": name, **in_words(scores)} for name, scores in told.items()]
    return rows


def gradient(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """The paper's graph and optimization against the streamed basis, on a few images held in memory."""
    labeled = load_labeled(options.msrc, min(options.gradient_images, options.images or options.gradient_images))
    images = list(records_over(pipe, labeled, options.gradient_resolution))

    def streamed(count: int) -> list[Tensor]:
        basis = accumulated(lambda: iter(images), "what").solve(count)
        return [basis.project(records).eigenvectors for records in images]

    def descended(count: int) -> list[Tensor]:
        config = SpectralConfig("what", "knn", num_eigenvectors=count)
        results = DatasetGradientSolver(rounds=options.gradient_rounds, progress=sys.stderr.isatty()).fit(
            images, config
        )
        print({"mean Rayleigh quotient": round(float(1 - results[0].eigenvalues.mean()), 3)}, flush=True)
        return [result.eigenvectors for result in results]

    rows: Rows = []
    methods = {
        "hf_spectral, what, default": (streamed, NUM_EIGENVECTORS, semantic_segmentation),
        "the paper's gradient mode": (descended, DatasetGradientSolver().channels, of_all_channels),
    }
    for name, (method, count, labeling) in methods.items():
        start = time.perf_counter()
        maps = method(count)
        seconds = time.perf_counter() - start
        ratio = seconds / rows[0]["seconds"] if rows else 1.0
        # The first singular direction of the table is no trivial eigenvector: nothing is left out of it.
        found = maps if not rows else [padded(one) for one in maps]
        rows.append(
            {
                "method": name,
                "images": len(images),
                "seconds": seconds,
                "times slower": ratio,
                **agreement(found, labeled, labeling=labeling),
            }
        )
    return rows


def accumulated(images: Callable[[], Iterator[Sequence[AttentionRecord]]], pathway: str) -> BasisAccumulator:
    """Both passes over records."""
    room = BasisAccumulator(SpectralConfig(pathway, "cosine", layer_weights="auto"))
    for records in images():
        room.add_sums(records)
    for records in images():
        room.add_gram(records)
    return room


def records_over(
    pipe: SpectralPathwaysPipeline, labeled: Sequence[Labeled], resolution: int
) -> Iterator[Sequence[AttentionRecord]]:
    """Run the backbone over the pictures."""
    for one in tqdm(labeled, disable=None):
        yield records_and_tokens(pipe, one.image, resolution)[0]


def agreement(
    maps: list[Tensor],
    labeled: Sequence[Labeled],
    num_seeds: int = SEEDS,
    labeling: Labeling = semantic_segmentation,
) -> dict[str, Any]:
    """Cluster the rows with the true number of classes and compare with the labels: mean and range over seeds."""
    count, sizes = len(classes_of(labeled)), [one.truths[0].shape for one in labeled]
    labels = [labeling(maps, count, sizes, seed) for seed in range(num_seeds)]
    return {"clusters": str(count)} | in_words(measured(labels, labeled))


def measured(labels: Sequence[Sequence[Tensor]], labeled: Sequence[Labeled]) -> Scores:
    """Every measure of the labels of all images, once for each seed."""
    truth = np.concatenate([one.truths[0].ravel() for one in labeled])
    predictions = [np.concatenate([one.numpy().ravel() for one in of_seed]) for of_seed in labels]
    return {name: [measure(one, truth, VOID) for one in predictions] for name, measure in MEASURES.items()}


def sampled_rows(maps: Sequence[Tensor], seed: int) -> Tensor:
    """Unit rows of the tokens that decide about the clusters."""
    chosen = sample_tokens([one[0].numel() for one in maps], seed)
    return torch.cat([unit_rows(one)[torch.from_numpy(tokens)] for one, tokens in zip(maps, chosen, strict=True)])


def clusters_of(maps: Sequence[Tensor], labeled: Sequence[Labeled]) -> list[Clusters]:
    """As many clusters as the labels have classes, as `semantic_segmentation` finds them, once for each seed."""
    leading = [one[: leading_eigenvectors(len(maps))] for one in maps]
    return [find_clusters(sampled_rows(leading, seed), len(classes_of(labeled)), seed) for seed in range(SEEDS)]


def labeled_images(maps: Sequence[Tensor], clusters: Clusters, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Label every image with the same clusters."""
    return [label_image(one, clusters, size)[0] for one, size in zip(maps, sizes, strict=True)]


def of_all_channels(
    maps: Sequence[Tensor], num_segments: int, sizes: Sequence[tuple[int, int]], seed: int
) -> list[Tensor]:
    """`semantic_segmentation` that takes every channel: those of a gradient solver have no order by importance."""
    return labeled_images(maps, find_clusters(sampled_rows(maps, seed), num_segments, seed), sizes)


def plain_kmeans(
    maps: Sequence[Tensor], num_segments: int, sizes: Sequence[tuple[int, int]], seed: int
) -> list[Tensor]:
    """k-means of unit rows with as many centers as clusters."""
    fitted = KMeans(num_segments, n_init=4, random_state=seed).fit(sampled_rows(maps, seed).numpy())
    centers = torch.from_numpy(fitted.cluster_centers_)
    distances = [torch.cdist(unit_rows(one), centers).T.reshape(-1, *one.shape[1:]).contiguous() for one in maps]
    return [upsample(one, size) for one, size in zip(distances, sizes, strict=True)]


def classes_of(labeled: Sequence[Labeled]) -> set[int]:
    """Classes that the labels hold, void left out."""
    return {int(value) for one in labeled for value in np.unique(one.truths[0])} - {VOID}


def in_words(scores: Scores) -> dict[str, str]:
    """Mean and range of each measure."""
    return {
        name: f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})" for name, values in scores.items()
    }


def padded(maps: Tensor) -> Tensor:
    """Put a channel before the others that the read-out leaves out."""
    return torch.cat([torch.ones_like(maps[:1]), maps])


def ncut_maps(hidden: list[Tensor]) -> list[Tensor]:
    """Eigenvectors by ncut-pytorch with its defaults, all images in one."""
    from ncut_pytorch import Ncut

    torch.manual_seed(0)
    rows = torch.cat([one.flatten(1).T for one in hidden])
    vectors = Ncut(n_eig=NUM_EIGENVECTORS, device="cpu").fit_transform(rows).float()
    parts = vectors.split([one[0].numel() for one in hidden])
    return [part.T.reshape(-1, *one.shape[1:]) for part, one in zip(parts, hidden, strict=True)]


PARTS: dict[str, tuple[Callable[[SpectralPathwaysPipeline, argparse.Namespace], Rows], str]] = {
    "speed": (speed, "coco"),
    "memory": (memory, "coco"),
    "processes": (processes, "coco"),
    "scores": (scores, "coco"),
    "exact": (exact, "coco"),
    "quality": (quality, "msrc"),
    "unseen": (unseen, "msrc"),
    "gradient": (gradient, "msrc"),
}

if __name__ == "__main__":
    main()
