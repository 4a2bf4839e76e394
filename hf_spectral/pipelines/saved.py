"""A saved transformers pipeline: what its `config.json` says beside the backbone, and how that is read again."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from hf_spectral.affinities import AFFINITIES
from hf_spectral.basis import SpectralBasis
from hf_spectral.checks import require_fields, require_known, require_one_of
from hf_spectral.errors import SpectralError
from hf_spectral.hub_download import fetch
from hf_spectral.layer_weights import as_weighting
from hf_spectral.pipelines.backbone import TASK, cached_commit, saved_entry
from hf_spectral.pipelines.settings import HOST_NAMES, SETTINGS, SOLVERS

#: The module beside the backbone that names the class to load; it imports the installed package.
SHIM_NAME = "spectral_pathways.py"
#: Folder of the default basis of a saved pipeline.
BASIS_FOLDER = "basis"
#: Defaults that may be objects, by the names of their classes.
_KINDS: dict[str, dict[str, Any]] = {"affinity": dict(AFFINITIES), "solver": dict(SOLVERS)}


def save_beside(folder: Path, defaults: Mapping[str, Any]) -> None:
    """Write the module that names the class, and the default basis.

    Args:
        folder: Of the backbone; it exists.
        defaults: Of the pipeline, by name.
    """
    with importlib.resources.as_file(importlib.resources.files("hf_spectral.community") / SHIM_NAME) as shim:
        shutil.copyfile(shim, folder / SHIM_NAME)
    if defaults.get("basis") is not None:
        # The names of the user's unreadable files are private.
        dataclasses.replace(defaults["basis"], skipped=()).save_pretrained(folder / BASIS_FOLDER)


def described(defaults: Mapping[str, Any], backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry `custom_pipelines` of a configuration, as transformers reads it, with the defaults beside it.

    Args:
        defaults: Of the pipeline, by name.
        backbone: What `describe_backbone` says; `id` and `revision` are kept, as the copy has others.

    Returns:
        JSON values by task.

    Raises:
        SpectralError: If a default is an object of the user's own, which no file can name.
    """
    entry = {
        "impl": f"{SHIM_NAME.removesuffix('.py')}.SpectralPathwaysPipeline",
        "pt": ["AutoModel"],
        "type": "image",
        "defaults": {name: _as_json(name, value) for name, value in defaults.items()},
        "backbone": {name: backbone[name] for name in ("id", "revision")},
    }
    return {TASK: entry}


def saved_defaults(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that a saved pipeline was constructed with.

    Args:
        config: Of the backbone.
        given: Arguments of the constructor by name; a basis among them makes that of the pipeline needless.

    Returns:
        Arguments of the constructor by name; none for a backbone that is no saved pipeline.

    Raises:
        SpectralError: If a later version has written them, or the basis cannot be read.
    """
    defaults = dict(saved_entry(config).get("defaults", {}))
    require_known(defaults, SETTINGS | HOST_NAMES)
    for name, kinds in _KINDS.items():
        if isinstance(defaults.get(name), dict):
            parameters = dict(defaults[name])
            kind = parameters.pop("name", None)
            require_one_of(name, kind, tuple(kinds))
            require_fields(name, kinds[kind], parameters)
            defaults[name] = kinds[kind](**parameters)
    weights = defaults.get("layer_weights")
    if isinstance(weights, list) and all(isinstance(one, list) and len(one) == 2 for one in weights):
        defaults["layer_weights"] = dict(weights)
    if "basis" in defaults and "basis" not in given:
        place = Path(config.name_or_path)
        if not place.is_dir():
            names = [f"{BASIS_FOLDER}/{name}" for name in SpectralBasis._files]
            place = fetch(config.name_or_path, names, revision=cached_commit(config))
        defaults["basis"] = SpectralBasis.from_pretrained(place / BASIS_FOLDER)
    return defaults


def prefer_installed() -> None:
    """Let `transformers.pipeline` take the installed class for a saved pipeline, rather than a module from its folder.

    A registered model class comes before the code of a repository (`AutoConfig`), a registered pipeline does not: the
    host looks into `config.custom_pipelines` first, and asks for `trust_remote_code=True`. For this task it finds
    nothing there; what is stored and saved stays the same.
    """
    name = "custom_pipelines"

    def get(config: Any) -> Any:
        if name not in vars(config):
            raise AttributeError(name)
        value = vars(config)[name]
        if type(value) is dict and TASK in value:
            value = vars(config)[name] = _Registered(value)
        return value

    def store(config: Any, value: Any) -> None:
        vars(config)[name] = value

    def delete(config: Any) -> None:
        del vars(config)[name]

    setattr(PreTrainedConfig, name, property(get, store, delete))


class _Registered(dict[str, Any]):
    """Custom pipelines, of which this package's own needs no code from elsewhere."""

    def __contains__(self, task: object) -> bool:
        return task != TASK and super().__contains__(task)


def _as_json(name: str, value: Any) -> Any:
    """Return what stands for a default in a file, from which the constructor makes the same again."""
    if name == "basis" and value is not None:
        return BASIS_FOLDER
    if name == "layer_weights" and value is not None:
        value = as_weighting(value)
    for known, kind in _KINDS.get(name, {}).items():
        if type(value) is kind:
            value = {"name": known, **dataclasses.asdict(value)}
    try:
        return json.loads(json.dumps(value, default=_plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SpectralError(
            name,
            expected="a default that a file can hold: a number, a name, or an object of this package",
            got=f"a {type(value).__name__}",
            fix="Leave it out of the pipeline's defaults, and pass it to the call",
        ) from error


def _plain(value: Any) -> Any:
    """Return a numpy number or array, or a sequence, as JSON has it."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return list(value) if isinstance(value, range) else json.JSONEncoder().default(value)
