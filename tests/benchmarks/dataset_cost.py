"""What a fit costs: time against plain forward passes, memory against the number of images, two processes or one."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hf_spectral
from hf_spectral import SpectralBasis
from hf_spectral.dataset.processes import announced_device
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.pipelines.images import read_image
from tests.benchmarks.common import default_pipe, in_fresh_process, paired_seconds, peak_mib, spread

MODULE = "tests.benchmarks.dataset"
Rows = list[dict[str, Any]]


def fit(
    pipe: SpectralPathwaysPipeline, folder: Path, options: argparse.Namespace, pathway: str, **settings: Any
) -> SpectralBasis:
    """Fit as a user does."""
    return hf_spectral.fit(
        pipe,
        str(folder),
        pathway=pathway,
        num_eigenvectors=16,
        batch_size=options.batch_size,
        resolution=options.resolution,
        progress=False,
        **settings,
    )


def speed(pipe: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """Time to fit either pathway as a multiple of one forward pass over the same images, pictures read in both.

    Once with all degrees, and once with those of a quarter of the images, which changes eigenvalues a little.
    """
    fitted: dict[str, SpectralBasis] = {}
    with grown(options.coco, options.images) as folder:
        paths = sorted(folder.iterdir())
        actions: dict[str, Callable[[], object]] = {"forward": lambda: forward_over(pipe, paths, options.resolution)}

        def fitting(name: str, pathway: str, degree_images: int | None) -> None:
            fitted[name] = fit(pipe, folder, options, pathway, degree_images=degree_images)

        for pathway in ("what", "where"):
            for name, count in ((pathway, None), (f"{pathway}, degrees of a quarter", len(paths) // 4)):
                actions[name] = partial(fitting, name, pathway, count)
        times = paired_seconds(actions, options.repeats)
    rows = []
    for name, seconds in times.items():
        ratios = [one / plain for one, plain in zip(seconds, times["forward"], strict=True)]
        row = {"run": name, "images": len(paths), "seconds": spread(seconds), "/ forward": spread(ratios)}
        exact = fitted.get(name.partition(",")[0])
        change = None if exact is None else (fitted[name].eigenvalues - exact.eigenvalues).abs().max()
        rows.append(row | {"largest change of an eigenvalue": "-" if change is None else f"{change:.1e}"})
    return rows


def memory(_: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """Peak memory of processes of their own that fit ever more images, pictures repeated under new names."""
    rows = []
    for pathway in ("what", "where"):
        peaks = [
            in_fresh_process(MODULE, *probe_words(options, pathway, count))["peak_mib"]
            for count in options.memory_images
        ]
        rows += [
            {"pathway": pathway, "images": count, "peak, MiB": peak, "/ second": peak / peaks[min(1, len(peaks) - 1)]}
            for count, peak in zip(options.memory_images, peaks, strict=True)
        ]
    return rows


def processes(_: SpectralPathwaysPipeline, options: argparse.Namespace) -> Rows:
    """One process against two, one thread each: seconds inside `fit`, and how far the eigenvalues differ."""
    rows = []
    for pathway in ("what", "where"):
        seconds: dict[int, list[float]] = {1: [], 2: []}
        values = {}
        for _ in range(options.repeats):
            for number in seconds:
                with grown(options.coco, options.images) as folder, tempfile.TemporaryDirectory() as output:
                    count = len(pictures(folder))
                    elapsed, values[number] = launched(options, pathway, folder, output, number)
                seconds[number].append(elapsed)
        ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
        rows.append(
            {
                "pathway": pathway,
                "images": count,
                "one, s": spread(seconds[1]),
                "two, s": spread(seconds[2]),
                "times faster": spread(ratios),
                "largest difference of eigenvalues": f"{float((values[1] - values[2]).abs().max()):.1e}",
            }
        )
    return rows


def launched(options: argparse.Namespace, pathway: str, folder: Path, output: str, number: int) -> tuple[float, Tensor]:
    """Fit in so many processes of one thread each; return seconds inside `fit` and the eigenvalues."""
    words = probe_words(options, pathway, 0, output, threads=1, folder=folder)
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={number}", "--standalone", "-m", MODULE, *words]
    done = subprocess.run([sys.executable, *launcher], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(done.stderr[-4000:])
    found = json.loads(lines[-1])
    if found["processes"] != number:
        raise RuntimeError(f"{found['processes']} processes worked together instead of {number}")
    return found["seconds"], SpectralBasis.from_pretrained(output).eigenvalues


def forward_over(pipe: SpectralPathwaysPipeline, paths: Sequence[Path], resolution: int) -> None:
    """The backbone alone, picture by picture."""
    for path in paths:
        with torch.no_grad():
            pipe.model(**pipe.preprocess(read_image(path), resolution=resolution)["inputs"])


def pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder in order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})


class grown:  # noqa: N801
    """A folder of so many pictures, those at hand repeated under new names (links).

    Args:
        source: Folder of pictures.
        count: Pictures wanted; None takes all once.
    """

    def __init__(self, source: Path, count: int | None) -> None:
        self._paths, self._count = pictures(source), count
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Path:
        folder = Path(self._folder.name)
        for number in range(self._count or len(self._paths)):
            path = self._paths[number % len(self._paths)]
            (folder / f"{number:06d}{path.suffix}").symlink_to(path.resolve())
        return folder

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()


def probe_words(
    options: argparse.Namespace,
    pathway: str,
    count: int,
    output: str = "-",
    threads: int | None = None,
    folder: Path | None = None,
) -> list[str]:
    """Return the command line of a fit in another process."""
    words = ["--coco", folder or options.coco, "--threads", threads or options.threads]
    words += ["--batch-size", options.batch_size, "--resolution", options.resolution]
    return [str(word) for word in [*words, "--probe", pathway, count, output]]


def probe(options: argparse.Namespace) -> None:
    """Fit in this process, which may be one of several, and print seconds and peak memory.

    The count is 0 where processes have to share the folder itself.
    """
    pathway, count, output = options.probe
    announced_device("cpu")
    pipe = default_pipe(options.threads)
    with grown(options.coco, int(count) or None) as copied:
        folder = copied if int(count) else options.coco
        start, busy = time.perf_counter(), time.process_time()
        basis = fit(pipe, folder, options, pathway)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - busy
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if is_first:
        if output != "-":
            basis.save_pretrained(output)
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak_mib(), "processes": world}
        print(json.dumps(found), flush=True)
