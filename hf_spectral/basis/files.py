"""A basis on disk: `config.json` and `basis.safetensors`. What is read is not trusted, and no pickle is involved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from hf_spectral.affinities import Cosine
from hf_spectral.atomic import replacing
from hf_spectral.basis.factors import BasisLayer
from hf_spectral.basis.walk import MAX_WALK
from hf_spectral.checks import is_int, is_number
from hf_spectral.clusters import Clusters
from hf_spectral.config import SpectralConfig
from hf_spectral.fingerprint import WEIGHTS, is_fingerprint
from hf_spectral.tensor_files import Form, parse_json, read_tensors, read_text

FORMAT = "hf_spectral.SpectralBasis/1"
#: With this, transformers knows the `config.json` of a basis where it expects one of a model.
MODEL_TYPE = "spectral-basis"
CONFIG_NAME = "config.json"
TENSORS_NAME = "basis.safetensors"
#: Tensors of `Clusters`, stored by the names of its fields.
CLUSTER_TENSORS = ("mean", "directions", "centers", "cluster")

_MAX_LAYER_WIDTH = 1 << 17
# Pictures are enlarged to it when a basis is used.
_MAX_RESOLUTION = 1 << 13


def write(folder: Path, described: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write both files, each under another name first, so that neither is ever seen half written.

    Args:
        folder: Where to write; made if need be.
        described: Everything but the tensors, ready for JSON.
        tensors: By name.

    Returns:
        The folder.
    """
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    # The checksum reveals a config beside the tensors of another run, as after a crash between the two files.
    described = {"format": FORMAT, "model_type": MODEL_TYPE, "sha256": hashlib.sha256(content).hexdigest(), **described}
    text = json.dumps(described, indent=2, allow_nan=False, sort_keys=True)
    contents = {TENSORS_NAME: content, CONFIG_NAME: text.encode()}
    for name, content in contents.items():
        with replacing(folder / name) as partial:
            partial.write_bytes(content)
    return folder


def describe_clusters(clusters: Clusters) -> dict[str, Any]:
    """Describe clusters as `config.json` holds them: their settings, and the sizes of their tensors.

    Args:
        clusters: Clusters of the basis.

    Returns:
        Numbers by name.
    """
    num_centers, num_directions = clusters.centers.shape
    sizes = {"num_channels": len(clusters.mean), "num_centers": num_centers, "num_directions": num_directions}
    return {"num_segments": clusters.num_segments, "walk": clusters.walk, **sizes}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read both files. The sizes that the description implies are compared with the file's before it is read.

    Args:
        folder: A local folder.

    Returns:
        The description, with `layers` and `config` as objects, and the tensors by name. Missing and damaged files, and
        those that do not fit each other, raise one of `tensor_files.DAMAGE`.
    """
    described = _parsed(read_text(folder / CONFIG_NAME))
    forms = _expected_forms(described)
    return described, _tensors(folder / TENSORS_NAME, forms, described)


def _parsed(text: str) -> dict[str, Any]:
    values = parse_json(text)
    checks: dict[str, Callable[[Any], bool]] = {
        "format": lambda value: value == FORMAT,
        "model_type": lambda value: value == MODEL_TYPE,
        "sha256": lambda value: isinstance(value, str),
        "layers": lambda value: isinstance(value, list) and len(value) > 0,
        "weights": lambda value: isinstance(value, list) and all(is_number(weight) and weight > 0 for weight in value),
        "num_images": _is_count,
        "num_nodes": _is_count,
        "config": lambda value: isinstance(value, dict),
        "max_width": lambda value: value is None or _is_count(value),
        "backbone": lambda value: (
            isinstance(value, dict)
            and not _is_huge(value.get("resolution"))
            and (WEIGHTS not in value or is_fingerprint(value[WEIGHTS]))
        ),
        "versions": lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
        "skipped": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
        "clusters": lambda value: value is None or _describes_clusters(value),
    }
    if isinstance(values, dict):
        # A basis that has no clusters does not mention them, and one of version 0.1 does not mention its type.
        values = {"clusters": None, "model_type": MODEL_TYPE, **values}
    if not isinstance(values, dict) or set(values) != set(checks):
        raise ValueError(f"{CONFIG_NAME} does not have the keys {', '.join(sorted(checks))}, and these only")
    for name, holds in checks.items():
        if not holds(values[name]):
            raise ValueError(f"{name} in {CONFIG_NAME} is {str(values[name])[:60]!r}")
    del values["format"], values["model_type"]
    values["layers"] = tuple(_layer(layer) for layer in values["layers"])
    values["weights"] = tuple(float(weight) for weight in values["weights"])
    if len(values["weights"]) != len(values["layers"]) or abs(sum(values["weights"]) - 1) > 1e-6:
        raise ValueError("the weights are not one per layer with sum 1")
    if len({layer.key for layer in values["layers"]}) < len(values["layers"]):
        raise ValueError("a layer occurs twice")
    if values["max_width"] is None and any(layer.kept < layer.width for layer in values["layers"]):
        raise ValueError("a layer is bounded without a max_width")
    values["config"] = _settings(values["config"])
    if values["clusters"] and values["clusters"]["num_channels"] >= values["config"].num_eigenvectors:
        raise ValueError("the clusters take more eigenvectors than there are")
    values["skipped"] = tuple(values["skipped"])
    return values


def _describes_clusters(values: Any) -> bool:
    names = ("num_segments", "num_channels", "num_centers", "num_directions")
    return (
        isinstance(values, dict)
        and set(values) == {*names, "walk"}
        and all(_is_count(values[name]) for name in names)
        and is_number(values["walk"])
        and 0 <= values["walk"] <= MAX_WALK
    )


def _settings(values: dict[str, Any]) -> SpectralConfig:
    config = SpectralConfig.from_dict(values)
    if config.affinity != Cosine() or config.heads != "merged":
        raise ValueError("the config is not one of a basis")
    return config


def _layer(values: Any) -> BasisLayer:
    layer = BasisLayer(**values)
    fits = isinstance(layer.name, str) and is_int(layer.index) and layer.index >= 0
    fits = fits and (layer.timestep is None or is_number(layer.timestep))
    fits = fits and _is_count(layer.width) and _is_count(layer.kept)
    if not fits or layer.index >= 2**31 or not layer.kept <= layer.width <= _MAX_LAYER_WIDTH:
        raise ValueError(f"the layer {str(values)[:100]} is none")
    return layer


def _expected_forms(described: dict[str, Any]) -> dict[str, Form]:
    config: SpectralConfig = described["config"]
    count = config.num_eigenvectors
    forms: dict[str, Form] = {
        "eigenvalues": (torch.float32, (count,)),
        "residuals": (torch.float32, (count,)),
        "num_tokens": (torch.int64, (len(described["layers"]),)),
    }
    for position, layer in enumerate(described["layers"]):
        forms[f"projection.{position}"] = (torch.float32, (layer.rank(config.pathway), count))
        forms[f"sum.{position}"] = (torch.float64, (layer.rank(config.pathway),))
    if kept := described["clusters"]:
        channels, centers, directions = (kept[f"num_{name}"] for name in ("channels", "centers", "directions"))
        forms["clusters.mean"] = (torch.float32, (channels,))
        forms["clusters.directions"] = (torch.float32, (channels, directions))
        forms["clusters.centers"] = (torch.float32, (centers, directions))
        forms["clusters.cluster"] = (torch.int64, (centers,))
    return forms


def _tensors(path: Path, forms: dict[str, Form], described: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors, after the header and the file's size were compared with the forms.

    Raises:
        ValueError: If they do not agree, or a number is out of range.
    """
    tensors, content = read_tensors(path, forms)
    if (tensors["num_tokens"] < 1).any() or (tensors["eigenvalues"].diff() < 0).any():
        raise ValueError("the tensors hold counts below 1 or eigenvalues out of order")
    if kept := described["clusters"]:
        numbers = tensors["clusters.cluster"]
        if (numbers < 0).any() or (numbers >= kept["num_segments"]).any():
            raise ValueError("the tensors hold a cluster beyond their number")
    if hashlib.sha256(content).hexdigest() != described.pop("sha256"):
        raise ValueError(f"{path.name} is not the file that {CONFIG_NAME} was written with")
    return tensors


def _is_count(value: Any) -> bool:
    return is_int(value) and 1 <= value < 2**62


def _is_huge(resolution: Any) -> bool:
    return isinstance(resolution, int | float) and not resolution <= _MAX_RESOLUTION
