"""`hf-spectral fit` and `hf-spectral transform`: whole datasets, also under `accelerate launch` or `torchrun`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_spectral.basis import SpectralBasis
from hf_spectral.cli.common import DATASET, DONE, MODEL, SOME_FAILED, add_command, chosen, count_or_auto, load
from hf_spectral.dataset import fit, transform
from hf_spectral.dataset.processes import Processes, announced_device
from hf_spectral.records import PATHWAYS


def add_parsers(commands: Any) -> None:
    """Add `fit` and `transform` to the subparsers of the program."""
    read = f"{DATASET} {MODEL} --batch-size --on-error --output"
    solved = "--resolution --layers --max-width --seed --timesteps --prompt"
    text = "one basis for all pictures of a folder"
    fitting = add_command(commands, "fit", _fit, text, f"{read} {solved}", output=Path("basis"))
    number = "default: 128, or as many as there are"
    fitting.add_argument("--num-eigenvectors", type=int, metavar="N", help=number)
    fitting.add_argument("--pathway", choices=PATHWAYS, default="what", help="default: what")
    fitting.add_argument(
        "--layer-weights",
        nargs="+",
        default=["auto"],
        metavar="W",
        help="auto, equal, or one number per layer; default: auto",
    )
    degrees = "images that give the degrees of all, in half the time; default: all, exact"
    fitting.add_argument("--degree-images", type=int, metavar="N", help=degrees)
    fitting.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="save here, and resume from here")
    fitting.add_argument("--checkpoint-every", type=int, default=500, metavar="N", help="images; default: 500")

    text = "eigenvectors of all pictures of a folder, as rows of a dataset"
    rows = add_command(commands, "transform", _transform, text, read.replace("--model ", ""), output=Path("rows"))
    rows.add_argument("--model", help="repository id or folder; default: the backbone that the basis names")
    rows.add_argument("--basis", required=True, metavar="DIR", help="folder written by fit, or user/name on the Hub")
    clusters = "clusters over all pictures, or auto for those that the basis has; default: none"
    rows.add_argument("--num-segments", type=count_or_auto, metavar="N", help=clusters)
    rows.add_argument("--walk", type=float, metavar="A", help="0 (off) to 0.999; default: 0.9, where: 0")
    numbers = "of the eigenvectors in the rows; default: float16"
    rows.add_argument("--row-dtype", dest="dtype", choices=("float16", "float32"), default="float16", help=numbers)


def _fit(options: argparse.Namespace) -> int:
    """Fit a basis and write it, with `fit.json` beside it."""
    options.device = announced_device(options.device)
    pipe = load(options)
    settings = {**chosen(options, fit), "layer_weights": _layer_weights(options.layer_weights)}
    basis, report = fit(pipe, **settings, return_report=True)
    if Processes(pipe.device).is_main:
        basis.save_pretrained(options.output)
        report.to_json(options.output / "fit.json")
        rate = report.num_images / max(report.seconds, 1e-9)
        print(f"{basis}\n  time: {report.seconds:.1f} s, {rate:.2f} images per second")
        print(f"{len(basis.eigenvalues)} eigenvectors of {basis.num_images} images written to {options.output}")
    return SOME_FAILED if report.skipped else DONE


def _transform(options: argparse.Namespace) -> int:
    """Write the rows of a folder of pictures."""
    basis = SpectralBasis.from_pretrained(options.basis)
    fitted = basis.backbone  # A diffusion model reads pictures at the timesteps and with the prompt of the fit.
    told = {"timesteps": fitted.get("timesteps"), "prompt": fitted.get("prompt")}
    options.model, options.device = options.model or options.basis, announced_device(options.device)
    pipe = load(options, **told, seed=fitted.get("noise_seed", 0))
    settings = {**chosen(options, transform), "basis": basis, "output_dir": options.output}
    rows, report = transform(pipe, **settings, return_report=True)
    if Processes(pipe.device).is_main:
        print(f"{len(rows)} rows written to {options.output}; read them by datasets.load_from_disk")
    return SOME_FAILED if report.skipped else DONE


def _layer_weights(words: list[str]) -> str | list[float]:
    """Return numbers, or else the words as they are: `fit` checks them."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return " ".join(words)
