"""One image at a time: quality against human segmentations, speed and memory against the backbone's own forward pass.

    python -m tests.benchmarks.single_image FOLDER [--images N] [--gradient-images N] [--json FILE]

FOLDER holds `images/ID.jpg` and `labels/ID_ANNOTATOR.png` (BSDS500 style). Every method gets the same tokens, the same
number of segments (the median of the annotators, clipped to 2..20) and the same soft upsampling.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from skimage.measure import label
from sklearn.cluster import KMeans, SpectralClustering
from torch import Tensor
from tqdm import tqdm

from hf_spectral import EigenSolver, GradientSolver, SpectralConfig, build_problem, capture_attention, segment, solve
from hf_spectral.metrics import adjusted_rand_index, covering, variation_of_information
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.records import AttentionRecord
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import upsample
from tests.benchmarks.common import (
    BACKBONES,
    Labeled,
    default_pipe,
    in_fresh_process,
    load_labeled,
    machine,
    paired_seconds,
    peak_mib,
    print_table,
    spread,
)

MODULE = "tests.benchmarks.single_image"
NUM_EIGENVECTORS = 16  # the pipeline's default
PAPER_EIGENVECTORS = 20
GRIDS = {"37 x 37": (518, 518), "68 x 46": (952, 644)}


def main() -> None:
    """Run the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, help="default: all")
    parser.add_argument("--resolution", type=int, default=952)
    parser.add_argument("--void", type=int, metavar="LABEL", help="of pixels that the protocol does not score")
    parser.add_argument("--gradient-images", type=int, default=5)
    parser.add_argument("--gradient-resolution", type=int, default=476)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", choices=list(BACKBONES), default="dinov2")
    parser.add_argument("--parts", nargs="+", default=["quality", "protocol", "gradient", "speed", "memory"])
    parser.add_argument("--methods", nargs="+", metavar="PART", help="only methods whose name holds one of these")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-probe", choices=["forward", "spectral"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_probe:
        print(json.dumps(memory_probe(options.memory_probe, options.threads)))
        return
    pipe = default_pipe(options.threads, options.backbone)
    report: dict[str, Any] = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}}
    for part in options.parts:
        print(f"\n## {part}\n", flush=True)
        report[part] = PARTS[part](pipe, options)
        print_table(report[part])
    print(f"\n{json.dumps(report['machine'])}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def quality(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Score every method on every picture; one row per method, best of the single layers marked."""
    scores: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    counts: dict[str, list[int]] = defaultdict(list)
    quotients: dict[str, list[float]] = defaultdict(list)
    for labeled in tqdm(load_labeled(options.folder, options.images), disable=None):
        start = time.perf_counter()
        records, tokens, grid = records_and_tokens(pipe, labeled.image, options.resolution)
        forward = time.perf_counter() - start
        for name, method in methods(records, tokens, grid, labeled).items():
            if options.methods and not any(part in name for part in options.methods):
                continue
            start = time.perf_counter()
            labels, quotient = method()
            seconds[name].append((time.perf_counter() - start) / forward)
            counts[name].append(int(labels.max()) + 1)
            quotients[name].append(quotient)
            scores[name].append(
                (
                    covering(labels, labeled.truths),
                    adjusted_rand_index(labels, labeled.truths),
                    variation_of_information(labels, labeled.truths),
                )
            )
    rows = []
    for name, values in scores.items():
        means = np.mean(values, axis=0)
        rows.append(
            {
                "method": name,
                "covering": float(means[0]),
                "ARI": float(means[1]),
                "VI": float(means[2]),
                "segments": float(np.mean(counts[name])),
                "Rayleigh quotient": f"{np.mean(quotients[name]):.3f}" if np.isfinite(quotients[name]).all() else "-",
                "time / forward": statistics.median(seconds[name]),
                "images": len(values),
            }
        )
    return rows


def protocol(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Score the region tree and token Ward by the protocol of BSDS500, for one scale of all pictures and for the best.

    Covering, probabilistic Rand index and variation of information (bits), each at the scale that is best for the whole
    folder (ODS) and at the best of each picture (OIS), with the annotators' median number of segments and with the
    automatic one; and the F-measure of boundaries with the median number, over all pictures, with a tolerance of two
    pixels and no one-to-one matching, for which no library has the code of BSDS500. With `--void`, labels are classes:
    each connected part of one is a segment, and there is no F-measure, as outlines lie in the void.
    """
    found = defaultdict(list)
    for labeled in tqdm(load_labeled(options.folder, options.images), disable=None):
        if options.void is not None:
            parts = [label(truth, background=options.void) - 1 for truth in labeled.truths]
            labeled = dataclasses.replace(labeled, truths=parts)
        records, _, _ = records_and_tokens(pipe, labeled.image, options.resolution)
        config = SpectralConfig(num_eigenvectors=NUM_EIGENVECTORS, layer_weights="auto")
        result = solve(build_problem(records, config))
        for method in SCALES:
            found[method].append(protocol_scores(result, labeled, method))
    return [{"method": method, **protocol_row(scores, options.void is None)} for method, scores in found.items()]


SCALES = {"tree": np.geomspace(0.01, 2, 40), "ward": np.geomspace(0.08, 1, 20)}


def protocol_scores(result: SpectralResult, labeled: Labeled, method: str) -> dict[str, np.ndarray]:
    """Covering, PRI and VI of one picture at each scale, with the number given and automatic; boundary counts."""
    settings = {"image": labeled.image, "method": method}
    given = segment(result, num_segments=labeled.num_segments, **settings)
    if method == "tree":
        cuts = [given.at(threshold=float(threshold)).labels for threshold in SCALES[method]]
    else:
        limits = {"max_auto_segments": 100}
        cuts = [segment(result, threshold=float(one), **limits, **settings).labels for one in SCALES[method]]
    automatic = segment(result, **settings).labels
    return {
        "scales": np.array([region_scores(labels.numpy(), labeled.truths) for labels in cuts]),
        "given": region_scores(given.labels.numpy(), labeled.truths),
        "automatic": region_scores(automatic.numpy(), labeled.truths),
        "boundaries": boundary_counts(given.labels.numpy(), labeled.truths),
    }


def protocol_row(scores: list[dict[str, np.ndarray]], has_outlines: bool) -> dict[str, float]:
    """Means over pictures, at the best scale of the folder and of each picture."""
    scales = np.stack([one["scales"] for one in scores]) * [1, 1, -1]  # VI: the less, the better.
    ods, ois = scales.mean(0).max(0) * [1, 1, -1], scales.max(1).mean(0) * [1, 1, -1]
    row = {f"{name} {at}": float(value) for at, values in (("ODS", ods), ("OIS", ois))
           for name, value in zip(("covering", "PRI", "VI"), values, strict=True)}  # fmt: skip
    for kind in ("given", "automatic"):
        row[f"covering, {kind}"] = float(np.mean([one[kind][0] for one in scores]))
    if has_outlines:
        near, drawn, met, wanted = np.sum([one["boundaries"] for one in scores], axis=0)
        precision, recall = near / drawn, met / wanted
        row["boundary F"] = float(2 * precision * recall / (precision + recall))
    return {**row, "images": len(scores)}


def region_scores(labels: np.ndarray, truths: list[np.ndarray]) -> np.ndarray:
    """Covering, probabilistic Rand index and variation of information, means over the annotators.

    Pixels of a negative truth are left out.
    """
    scores = []
    for truth in truths:
        regions, is_scored = int(truth.max()) + 1, truth >= 0
        pairs = (labels * regions + truth)[is_scored]
        table = np.bincount(pairs, minlength=(int(labels.max()) + 1) * regions).reshape(-1, regions)
        table = table[:, table.any(0)][table.any(1)].astype(float)
        segments, areas, total = table.sum(1), table.sum(0), table.sum()
        overlap = table / (segments[:, None] + areas - table)
        together = [(counts * (counts - 1)).sum() for counts in (table, segments, areas)]
        rand = 1 - (together[1] + together[2] - 2 * together[0]) / (total * (total - 1))
        joint, first, second = (entropy(counts.ravel(), base=2) for counts in (table, segments, areas))
        scores.append((overlap.max(0) @ areas / total, rand, 2 * joint - first - second))
    return np.mean(scores, axis=0)


def boundary_counts(labels: np.ndarray, truths: list[np.ndarray], tolerance: float = 2.0) -> np.ndarray:
    """Boundary pixels near one of any annotator, all of ours, annotators' pixels near one of ours, all of theirs."""
    ours, theirs = boundary(labels), [boundary(truth) for truth in truths]
    near = ndimage.distance_transform_edt(~np.any(theirs, axis=0)) <= tolerance
    near_ours = ndimage.distance_transform_edt(~ours) <= tolerance if ours.any() else ours
    met = sum((one & near_ours).sum() for one in theirs)
    return np.array([(ours & near).sum(), ours.sum(), met, np.sum(theirs)])


def boundary(labels: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one above or to the left."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return edge


def methods(
    records: list[AttentionRecord], tokens: Tensor, grid: tuple[int, int], labeled: Labeled
) -> dict[str, Callable[[], tuple[Tensor, float]]]:
    """Return a callable a method, each giving pixel labels and the mean Rayleigh quotient where it has one."""
    size, count = (labeled.image.height, labeled.image.width), labeled.num_segments

    def ours(layers: list[AttentionRecord], **settings: Any) -> tuple[Tensor, float]:
        given = {"num_segments": count, "image": labeled.image} | {
            key: settings.pop(key) for key in ("num_segments", "method", "image") if key in settings
        }
        result = solve(build_problem(layers, SpectralConfig(num_eigenvectors=NUM_EIGENVECTORS, **settings)))
        labels = segment(result, size=size, **given).labels
        return labels, float((1 - result.eigenvalues).mean())

    def peer(label_tokens: Callable[[], np.ndarray]) -> tuple[Tensor, float]:
        labels = label_tokens()
        return soft_labels(tokens.numpy(), labels, grid, size), float("nan")

    found = {
        "hf_spectral, what, all layers": lambda: ours(records),
        "hf_spectral, what, all layers, automatic number": lambda: ours(records, num_segments="auto"),
        "hf_spectral, what, all layers, weighted": lambda: ours(records, layer_weights="auto"),
        "hf_spectral, what, all layers, tokens alone": lambda: ours(records, image=None, method="ward"),
        "hf_spectral, what, all layers, tokens alone, k-means": lambda: ours(records, image=None, method="kmeans"),
        "hf_spectral, what, heads separate": lambda: ours(records, heads="separate"),
        "hf_spectral, where, all layers": lambda: ours(records, pathway="where"),
        "ncut-pytorch, last hidden state": lambda: peer(lambda: ncut_labels(tokens, count)),
        "k-means, last hidden state": lambda: peer(lambda: kmeans_labels(tokens.numpy(), count)),
        "scikit-learn SpectralClustering, last hidden state": lambda: peer(
            lambda: sklearn_labels(tokens.numpy(), count)
        ),
    }
    for record in records:
        found[f"hf_spectral, what, layer {record.index} alone"] = lambda record=record: ours([record])
    return found


def gradient(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare the exact solver with the paper's optimization on the same problems."""
    solvers = {
        "eigen": EigenSolver(),
        "gradient, the paper's 2,000 steps": GradientSolver(),
        "gradient, without repeated evaluations": GradientSolver(max_steps=100, accumulation_steps=1),
    }
    rows = []
    for labeled in load_labeled(options.folder, options.gradient_images):
        records, _, _ = records_and_tokens(pipe, labeled.image, options.gradient_resolution)
        problem = build_problem(records, SpectralConfig("what", num_eigenvectors=PAPER_EIGENVECTORS))
        size, exact = (labeled.image.height, labeled.image.width), 0.0
        for name, solver in solvers.items():
            repeats = []
            for _ in range(5 if name == "eigen" else 1):
                start = time.perf_counter()
                result = solve(problem, solver)
                repeats.append(time.perf_counter() - start)
            elapsed = statistics.median(repeats)
            exact = exact or elapsed
            labels = segment(result, num_segments=labeled.num_segments, method="kmeans", size=size).labels
            rows.append(
                {
                    "image": labeled.name,
                    "tokens": problem.num_nodes,
                    "solver": name,
                    "Rayleigh quotient": float((1 - result.eigenvalues).mean()),
                    "covering": covering(labels, labeled.truths),
                    "seconds": elapsed,
                    "times slower than eigen": round(elapsed / exact, 1),
                }
            )
            print(f"{rows[-1]}", flush=True)
    return rows


def speed(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both pathways, 16 eigenvectors, no segmentation: time beyond the plain forward pass, as a multiple of it."""
    rows = []
    for name, (width, height) in GRIDS.items():
        pixels = sample_pixels(pipe, height, width)
        times = paired_seconds(
            {"forward": partial(plain_forward, pipe, pixels), "all": partial(both_pathways, pipe, pixels)},
            options.repeats,
        )
        ratios = [(whole - forward) / forward for whole, forward in zip(times["all"], times["forward"], strict=True)]
        rows.append(
            {
                "tokens": name,
                "forward, s": spread(times["forward"]),
                "all, s": spread(times["all"]),
                "after the forward / forward": spread(ratios),
            }
        )
    return rows


def memory(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory above the plain forward pass, each in a process of its own, 68 x 46 tokens."""
    words = ("--threads", str(options.threads))
    plain = in_fresh_process(MODULE, "--memory-probe", "forward", *words)["peak_mib"]
    whole = in_fresh_process(MODULE, "--memory-probe", "spectral", *words)["peak_mib"]
    return [{"forward, MiB": plain, "both pathways, MiB": whole, "above the forward, MiB": whole - plain}]


def memory_probe(kind: str, threads: int) -> dict[str, float]:
    """Measure one of the two in this process."""
    pipe = default_pipe(threads)
    width, height = GRIDS["68 x 46"]
    pixels = sample_pixels(pipe, height, width)
    plain_forward(pipe, pixels)
    if kind == "spectral":
        both_pathways(pipe, pixels)
    return {"peak_mib": peak_mib()}


def sample_pixels(pipe: SpectralPathwaysPipeline, height: int, width: int) -> dict[str, Any]:
    """A real picture at a given size, as the pipeline's forward takes it."""
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg")).resize((width, height), Image.Resampling.BICUBIC)
    return pipe.preprocess(image, resolution=max(height, width))


def plain_forward(pipe: SpectralPathwaysPipeline, pixels: dict[str, Any]) -> None:
    """The backbone alone."""
    with torch.no_grad():
        pipe.model(**pixels["inputs"])


def both_pathways(pipe: SpectralPathwaysPipeline, pixels: dict[str, Any]) -> None:
    """The backbone, capture, both problems and both solutions."""
    pipe.forward(dict(pixels), pathway="both", num_eigenvectors=16)


def records_and_tokens(
    pipe: SpectralPathwaysPipeline, image: Image.Image, resolution: int
) -> tuple[list[AttentionRecord], Tensor, tuple[int, int]]:
    """Records of all layers, and the patches of the last hidden state, of one forward pass."""
    inputs = pipe.preprocess(image, resolution=resolution)["inputs"]
    with torch.no_grad(), capture_attention(pipe.model) as capture:
        hidden = pipe.model(**inputs, **pipe._geometry.forward_arguments).last_hidden_state[0]
    grid = capture.records[0].grid
    return capture.records, grid.drop_prefix(hidden), (grid.height, grid.width)


def soft_labels(tokens: np.ndarray, labels: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Upsample any token labels as ours are: distances to the clusters' centroids, bilinear, then the nearest."""
    numbers = np.unique(labels)
    centroids = np.stack([tokens[labels == number].mean(axis=0) for number in numbers])
    return upsample(torch.from_numpy(cdist(tokens, centroids).T.reshape(-1, *grid)).float(), size)


def kmeans_labels(tokens: np.ndarray, count: int) -> np.ndarray:
    """Euclidean k-means."""
    return KMeans(count, n_init=4, random_state=0).fit_predict(tokens)


def ncut_labels(tokens: Tensor, count: int) -> np.ndarray:
    """Normalized cut by ncut-pytorch with its defaults, discretized its own way."""
    from ncut_pytorch import Ncut, kway_ncut

    torch.manual_seed(0)
    eigenvectors = Ncut(n_eig=PAPER_EIGENVECTORS, device="cpu").fit_transform(tokens)
    return kway_ncut(eigenvectors[:, :count], device="cpu").argmax(dim=1).numpy()


def sklearn_labels(tokens: np.ndarray, count: int) -> np.ndarray:
    """Scikit-learn's spectral clustering on the cosine kernel that ours uses, one layer."""
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    affinity = np.exp((unit @ unit.T - 1) / 0.1)
    return SpectralClustering(count, affinity="precomputed", random_state=0).fit_predict(affinity)


PARTS = {"quality": quality, "protocol": protocol, "gradient": gradient, "speed": speed, "memory": memory}

if __name__ == "__main__":
    main()
