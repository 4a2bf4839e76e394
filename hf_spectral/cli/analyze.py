"""`hf-spectral quickstart` and `hf-spectral analyze`: pictures one by one."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tqdm.auto import tqdm

import hf_spectral
from hf_spectral.affinities import AFFINITIES
from hf_spectral.atomic import replacing, save_picture
from hf_spectral.checks import require_int
from hf_spectral.cli.common import (
    DATASET,
    DONE,
    MISTAKE,
    MODEL,
    SOME_FAILED,
    add_command,
    chosen,
    complain,
    count_or_auto,
    load,
)
from hf_spectral.dataset.ahead import ahead
from hf_spectral.dataset.folder import list_pictures
from hf_spectral.dataset.opening import open_source
from hf_spectral.dataset.source import Find, Item
from hf_spectral.errors import HFSpectralError, SpectralError, shown
from hf_spectral.fingerprint import WEIGHTS
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.inputs import image_column
from hf_spectral.pipelines.settings import SETTINGS, SOLVERS, configs_of
from hf_spectral.records import PATHWAYS
from hf_spectral.visualization import eigenvector_sheet, eigenvectors_to_rgb, pathways_figure, segmentation_overlay

# Characters that some file system refuses, and bytes of a name that cannot be decoded.
_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|\ud800-\udfff]')
# Longest name of an output: with the longest ending it stays below the 255 bytes that file systems take.
_MAX_STEM_BYTES = 160


def add_parsers(commands: Any) -> None:
    """Add `quickstart` and `analyze` to the subparsers of the program."""
    folder = Path("spectral-output")
    text = "analyze a sample picture; needs no Hub"
    add_command(commands, "quickstart", _quickstart, text, "--output --device", output=folder)

    read = f"--dataset {DATASET.removeprefix('dataset')} {MODEL}"
    shared = f"{read} --pathway --num-eigenvectors --resolution --layers --seed --timesteps --prompt --output"
    text = "eigenvectors and segments of pictures"
    many = add_command(commands, "analyze", _analyze, text, shared, num_eigenvectors=16, output=folder)
    many.add_argument("images", nargs="*", metavar="IMAGE", help="file, URL, or folder with its subfolders")
    many.add_argument("--num-segments", type=count_or_auto, default="auto", metavar="N", help="a number, auto or none")
    many.add_argument("--affinity", choices=AFFINITIES, help="default: attention for where, exponential for what")
    many.add_argument("--solver", choices=sorted(SOLVERS), default="eigen", help="default: eigen")


def _quickstart(options: argparse.Namespace) -> None:
    """Analyze a sample picture that scikit-learn ships, with the default backbone, and say where the pictures are."""
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    pipe = load(options)
    _write_image(pipe, image, "china", options.output, {"pathway": "both", "resolution": 896})
    print(f"Where and what side by side: {options.output / 'china.pathways.png'}")
    print(f"Eigenvectors, segmentations and tensors: {options.output}")


def _analyze(options: argparse.Namespace) -> int:
    """Analyze pictures one by one; a bad one is named and does not stop the others."""
    given = {name: value for name, value in vars(options).items() if name in SETTINGS}
    settings = {name: value for name, value in given.items() if value is not None or name == "num_segments"}
    num_workers = require_int("num_workers", options.num_workers, 0)
    configs = configs_of(settings)
    finds, total = _pictures(options)
    pipe = load(options)
    pathways = [config.pathway for config in configs]
    pipe.check_reading(settings.get("resolution"), settings.get("layers"), pathways)
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    taken: set[str] = set()
    read = ahead(_read, finds, num_workers)
    try:
        for item, image in tqdm(read, total=total, unit="image", disable=total == 1):
            name = _unique_name(item.image if options.dataset is None else f"image-{item.position}", taken)
            try:
                if isinstance(image, HFSpectralError):
                    raise image
                done.append({"image": item.name, **_write_image(pipe, image, name, options.output, settings)})
            except HFSpectralError as error:
                failed.append({"image": item.name, "reason": str(error)})
                complain(f"{item.name}: {error}")
    finally:
        read.close()
        _write_summary(options, settings, pipe, done, failed)
    if done:
        print(f"{len(done)} of {len(done) + len(failed)} images written to {options.output}")
    return DONE if not failed else SOME_FAILED if done else MISTAKE


def _pictures(options: argparse.Namespace) -> tuple[Iterator[Find], int | None]:
    """Return how each picture is found, and how many there are; None for a stream."""
    if (options.dataset is None) == (not options.images):
        raise SpectralError("IMAGE", expected="pictures, or --dataset", got="none or both", fix="Give one of the two")
    if options.dataset is not None:
        source = open_source(**chosen(options, open_source), find_column=image_column, whole_rows=False)
        return source.images(slice(None)), source.length
    if given := [name for name in ("split", "streaming", "revision", "image_column") if getattr(options, name)]:
        raise SpectralError(given[0], expected="--dataset beside it", got="pictures", fix="Leave it out")
    sources: list[str | Path] = []
    for word in options.images:
        sources += list_pictures(word, "IMAGE") if os.path.isdir(word) else [word]
    # A path stays whole; a URL loses what may be secret.
    names = [str(source) if os.path.exists(source) else shown(str(source)) for source in sources]
    pairs = enumerate(zip(names, sources, strict=True))
    return (partial(Item, position, name, source, {}) for position, (name, source) in pairs), len(sources)


def _read(find: Find) -> tuple[Item, Image.Image | HFSpectralError]:
    """Return a picture, or the reason why it cannot be read."""
    item = find()
    try:
        if item.error is not None:
            return item, item.error
        image = item.image if item.content is not None else read_image(item.image)
        return item, read_image(item.decoded(image))
    except HFSpectralError as error:
        return item, error


def _unique_name(source: str | Path, taken: set[str]) -> str:
    """Name the outputs of a source by its file's stem, numbered where two stems are the same.

    A stem that is long, or that not every file system takes, is cut and cleaned; a checksum then tells it from others.

    Args:
        source: Path or URL.
        taken: Names of other sources; the name is added.

    Returns:
        The name.
    """
    stem = "" if str(source)[:5].lower() == "data:" else Path(str(source).partition("?")[0]).stem
    name = _UNSAFE.sub("_", stem).encode()[:_MAX_STEM_BYTES].decode(errors="ignore") or "image"
    if stem not in ("", name):
        name += "-" + hashlib.sha256(stem.encode(errors="surrogateescape")).hexdigest()[:8]
    base, number = name, 2
    while name.casefold() in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name.casefold())
    return name


def _write_image(pipe: Any, image: Image.Image, name: str, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Analyze one picture and write its files.

    Returns:
        What the summary says about it.
    """
    start = time.perf_counter()
    output = pipe(image, return_result=True, **settings)
    pathways = output if settings["pathway"] == "both" else {settings["pathway"]: output}
    size = (image.height, image.width)
    written = {key: _write_pathway(image, found, folder, f"{name}.{key}") for key, found in pathways.items()}
    described: dict[str, Any] = {"size": size, "pathways": written}
    if len(pathways) == 2:
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
