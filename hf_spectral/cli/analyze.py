"""`hf-spectral quickstart` and `hf-spectral analyze`: pictures one by one."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tqdm.auto import tqdm

import hf_spectral
from hf_spectral.affinities import AFFINITIES
from hf_spectral.atomic import replacing, require_writable, save_picture
from hf_spectral.cli.common import DONE, MISTAKE, SOME_FAILED, add_command, complain, count_or_auto, load
from hf_spectral.dataset.folder import list_pictures
from hf_spectral.errors import HFSpectralError, shown
from hf_spectral.fingerprint import WEIGHTS
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.settings import SOLVERS, configs_of
from hf_spectral.records import PATHWAYS
from hf_spectral.visualization import eigenvector_sheet, eigenvectors_to_rgb, pathways_figure, segmentation_overlay

# Characters that some file system refuses, and bytes of a name that are no text.
_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|\ud800-\udfff]')
# Longest name of an output: with the longest ending it stays below the 255 bytes that file systems take.
_MAX_STEM_BYTES = 160
_SETTINGS = ("pathway", "num_eigenvectors", "num_segments", "resolution", "affinity", "layers", "solver", "seed")


def add_parsers(commands: Any) -> None:
    """Add both commands.

    Args:
        commands: Subparsers of the program.
    """
    folder = Path("spectral-output")
    text = "analyze a sample picture; needs no Hub"
    add_command(commands, "quickstart", quickstart, text, "--output --device", output=folder)

    shared = "--model --pathway --num-eigenvectors --resolution --layers --seed --timesteps --prompt --output --device"
    text = "eigenvectors and segments of pictures"
    many = add_command(commands, "analyze", analyze, text, shared, num_eigenvectors=16, output=folder)
    many.add_argument("images", nargs="+", metavar="IMAGE", help="file, URL, or folder with its subfolders")
    many.add_argument("--num-segments", type=count_or_auto, default="auto", metavar="N", help="a number, auto or none")
    many.add_argument("--affinity", choices=AFFINITIES, help="default: attention for where, exponential for what")
    many.add_argument("--solver", choices=sorted(SOLVERS), default="eigen", help="default: eigen")


def quickstart(options: argparse.Namespace) -> int:
    """Analyze a sample picture that scikit-learn ships, with the default backbone, and say where the pictures are.

    Args:
        options: `output`, `device`.

    Returns:
        The exit code.
    """
    from sklearn.datasets import load_sample_image

    require_writable(options.output, "--output")
    image = Image.fromarray(load_sample_image("china.jpg"))
    pipe = load(None, options.device)
    _write_image(pipe, image, "china", options.output, {"pathway": "both", "resolution": 896})
    print(f"Where and what side by side: {options.output / 'china.pathways.png'}")
    print(f"Eigenvectors, segmentations and tensors: {options.output}")
    return DONE


def analyze(options: argparse.Namespace) -> int:
    """Analyze pictures one by one; a bad one is named and does not stop the others.

    Args:
        options: What `analyze --help` lists.

    Returns:
        The exit code.
    """
    require_writable(options.output, "--output")
    sources: list[str | Path] = []
    for word in options.images:
        sources += list_pictures(word, "IMAGE") if os.path.isdir(word) else [word]
    given = {name: getattr(options, name) for name in _SETTINGS}
    settings = {name: value for name, value in given.items() if value is not None or name == "num_segments"}
    configs = configs_of(settings)
    pipe = load(options.model, options.device, options.timesteps, options.prompt, options.seed)
    pathways = [config.pathway for config in configs]
    pipe.check_reading(settings.get("resolution"), settings.get("layers"), pathways)
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    names = _unique_names(sources)
    try:
        for source, name in zip(tqdm(sources, unit="image", disable=len(sources) == 1), names, strict=True):
            try:
                written = _write_image(pipe, source, name, options.output, settings)
                done.append({"image": _described(source), **written})
            except HFSpectralError as error:
                failed.append({"image": _described(source), "reason": str(error)})
                complain(f"{_described(source)}: {error}")
    finally:
        _write_summary(options, settings, pipe, done, failed)
    if done:
        print(f"{len(done)} of {len(sources)} images written to {options.output}")
    return DONE if not failed else SOME_FAILED if done else MISTAKE


def _described(source: str | Path) -> str:
    """Return a path whole, and a URL without what may be secret."""
    return str(source) if os.path.exists(source) else shown(str(source))


def _unique_names(sources: Sequence[str | Path]) -> list[str]:
    """Name the outputs of each source by its file's stem, numbered where two stems are the same.

    A stem that is long, or that not every file system takes, is cut and cleaned; a checksum then tells it from others.

    Returns:
        One name per source.
    """
    names: list[str] = []
    taken: set[str] = set()
    for source in sources:
        stem = "" if str(source)[:5].lower() == "data:" else Path(str(source).partition("?")[0]).stem
        name = _UNSAFE.sub("_", stem).encode()[:_MAX_STEM_BYTES].decode(errors="ignore") or "image"
        if stem not in ("", name):
            name += "-" + hashlib.sha256(stem.encode(errors="surrogateescape")).hexdigest()[:8]
        base, number = name, 2
        while name.casefold() in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def _write_image(
    pipe: Any, source: str | Path | Image.Image, name: str, folder: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Analyze one picture and write its files.

    Returns:
        What the summary says about it.
    """
    start = time.perf_counter()
    image = read_image(source)
    output = pipe(image, return_result=True, **settings)
    pathways = output if settings["pathway"] == "both" else {settings["pathway"]: output}
    described: dict[str, Any] = {"size": [image.height, image.width], "pathways": {}}
    for pathway, found in pathways.items():
        described["pathways"][pathway] = _write_pathway(image, found, folder, f"{name}.{pathway}")
    if len(pathways) == 2:
        size = (image.height, image.width)
        where, what = (
            eigenvectors_to_rgb(pathways[pathway]["eigenvectors"], pathways[pathway]["eigenvalues"], size=size)
            for pathway in PATHWAYS
        )
        described["figure"] = f"{name}.pathways.png"
        save_picture(pathways_figure(image, where, what), folder / described["figure"])
    return described | {"seconds": round(time.perf_counter() - start, 3)}


def _write_pathway(image: Image.Image, found: dict[str, Any], folder: Path, prefix: str) -> dict[str, Any]:
    files = {"result": f"{prefix}.safetensors", "eigenvectors": f"{prefix}.eigenvectors.png"}
    found["result"].save_pretrained(folder / files["result"])
    sheet = eigenvector_sheet(image, found["eigenvectors"], found["eigenvalues"])
    save_picture(sheet, folder / files["eigenvectors"])
    if "segmentation" in found:
        files["segmentation"] = f"{prefix}.segmentation.png"
        files["labels"] = f"{prefix}.labels.png"
        save_picture(found["segmentation"], folder / files["labels"])
        save_picture(segmentation_overlay(image, found["segmentation"]), folder / files["segmentation"])
    return {
        "files": files,
        "grid": list(found["grid"]),
        "num_layers": len(found["layers"]),
        "num_segments": len(found["segments"]) if "segments" in found else None,
        "eigenvalues": [round(value, 6) for value in found["eigenvalues"].tolist()],
        "largest_residual": float(found["residuals"].max()),
        "status": found["status"],
    }


def _write_summary(
    options: argparse.Namespace,
    settings: dict[str, Any],
    pipe: Any,
    done: list[dict[str, Any]],
    failed: list[dict[str, str]],
) -> None:
    versions = {package.__name__: package.__version__ for package in (hf_spectral, torch, transformers)}
    backbone = pipe.describe_backbone(settings.get("resolution"))
    backbone.pop(WEIGHTS)
    summary = {
        "model": options.model or hf_spectral.pipelines.DEFAULT_BACKBONE,
        "backbone": backbone,
        "settings": settings,
        "versions": versions,
        "images": done,
        "failed": failed,
    }
    with replacing(options.output / "summary.json") as partial:
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
