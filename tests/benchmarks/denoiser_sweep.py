"""Every denoiser class of the installed diffusers: a tiny random pipeline through ours, or the refusal by its files.

    python -m tests.benchmarks.denoiser_sweep [CLASS ...]

A line each: it works (with its pathways), it is refused in one line before any weight is loaded, or it FAILED, which is
a fault and the exit status. About a minute.
"""

from __future__ import annotations

import collections
import inspect
import json
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import diffusers

from hf_spectral import UnsupportedBackboneError
from hf_spectral.families.diffusers import FAMILIES
from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from tests.families.denoisers import TINY, TinyPipeline, denoiser_of
from tests.pipelines.tiny_diffusion import PIPELINES, host_pipeline, spectral
from tests.synthetic import photo

_DENOISER = re.compile("Transformer|UNet|DiT|UVit")
_NONE = re.compile("ControlNet|Adapter|Decoder|Encoder|Vae")


def classes() -> list[str]:
    """Return the names of diffusers' denoisers."""
    named = (name for name in dir(diffusers) if _DENOISER.search(name) and not _NONE.search(name))
    found = ((name, getattr(diffusers, name)) for name in named)
    return [name for name, one in found if inspect.isclass(one) and issubclass(one, diffusers.ModelMixin)]


def tiny_pipelines() -> dict[str, Any]:
    """Return a tiny pipeline of the host, or ours, for each class of which there is one."""
    built = [one.pipeline() for one in TINY.values()] + [host_pipeline(name) for name in PIPELINES]
    return {type(denoiser_of(pipe)).__name__: pipe for pipe in built}


def outcome(name: str, pipe: Any) -> tuple[str, str]:
    """Return a word for how a class fares, and the sentence about it.

    Args:
        name: Name of the class.
        pipe: A tiny pipeline with a denoiser of this class, or None.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            if pipe is None:
                return "FAILED", f"read without a tiny model: {_read_class(Path(folder), name)}"
            pipe.save_pretrained(folder)
            loaded = spectral(SpectralDiffusionPipeline.from_pretrained(folder))
            pathways = ("what",) if FAMILIES[name].where_refused else ("where", "what")
            given = {"resolution": TinyPipeline.resolution * loaded._geometry.multiple[0] // 4, "timesteps": [50]}
            found = [loaded(photo(), pathway=one, num_eigenvectors=3, num_segments=None, **given) for one in pathways]
        except UnsupportedBackboneError as error:
            is_right = "\n" not in str(error) and name in str(error) and pipe is None
            return ("refused" if is_right else "FAILED"), str(error)
        except Exception as error:  # noqa: BLE001 - what this script is for
            return "FAILED", f"{type(error).__name__}: {error}"
    layers = len(found[0].layers)
    word = "both pathways" if len(pathways) > 1 else f"{pathways[0]} only"
    return word, f"{layers} layers, {found[0].grid[0]} x {found[0].grid[1]} tokens"


def _read_class(folder: Path, name: str) -> Any:
    """Read a pipeline of which there are but the files that are fetched first."""
    part = "unet" if "UNet" in name else "transformer"
    index = {"_class_name": "APipeline", part: ["diffusers", name], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    for config in (part, "vae"):
        (folder / config).mkdir()
        (folder / config / "config.json").write_text("{}")
    return SpectralDiffusionPipeline.from_pretrained(folder)


def main() -> int:
    """Print a line per class and the counts; return 1 if any failed."""
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    counts: collections.Counter[str] = collections.Counter(FAILED=0)
    pipes = tiny_pipelines()
    for name in sys.argv[1:] or classes():
        word, sentence = outcome(name, pipes.get(name))
        counts[word] += 1
        said = re.sub(r"expected a denoiser, one of .*?, got", "expected one of the families, got", sentence)
        print(f"{name}: {word}: {said[:300]}", flush=True)
    print(dict(counts))
    return int(counts["FAILED"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
