"""Saved pipelines: the defaults, the basis and the card beside the backbone, written and read again."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hf_spectral.affinities import AFFINITIES
from hf_spectral.atomic import writing
from hf_spectral.basis import SpectralBasis, as_basis
from hf_spectral.checks import require_fields, require_known, require_one_of
from hf_spectral.errors import SpectralError
from hf_spectral.hub_download import fetch
from hf_spectral.layer_weights import as_weighting
from hf_spectral.pipelines.backbone import TASK, cached_commit, saved_entry
from hf_spectral.pipelines.settings import HOST_NAMES, SETTINGS, SOLVERS

#: The module beside the backbone that names the class to load; it imports the installed package.
SHIM_NAME = "spectral_pathways.py"
_PUSH_NAMES = frozenset({"repo_id", "details", "private", "revision", "create_pr", "token", "commit_message"})
#: Folder of the default basis of a saved pipeline.
BASIS_FOLDER = "basis"
#: Defaults that may be objects, by the names of their classes.
_KINDS: dict[str, dict[str, Any]] = {"affinity": dict(AFFINITIES), "solver": dict(SOLVERS)}


def save_pipeline(
    pipe: Any,
    save_directory: str | os.PathLike[str],
    settings: dict[str, Any],
    save: Callable[..., object],
    models: Mapping[str, Any],
    merge: str,
) -> None:
    """Save a pipeline: the backbone, the module that names the class, the default basis, and a card; or push it too.

    Args:
        pipe: The pipeline.
        save_directory: Folder to write to; made if need be.
        settings: For `save`; `push_to_hub=True` pushes the pipeline too, with arguments of its `push_to_hub`.
        save: Saves the backbone with all that the host reads beside it; takes the folder and settings by name.
        models: What is saved, by name; what is no model is passed over.
        merge: How a caller merges adapters into the weights.

    Raises:
        SpectralError: If the folder cannot be written, a model has adapters, or the Hub rejects the push.
    """
    # The saved weights of adapted layers have other names: loading would leave random ones in their place.
    if adapted := [name for name, model in models.items() if isinstance(model, nn.Module) and _has_adapters(model)]:
        expected, got = "a backbone without adapters", f"layers of PEFT in {', '.join(adapted)}"
        raise SpectralError("model", expected=expected, got=got, fix=f"Merge them first: {merge}")
    folder, defaults = Path(save_directory), pipe.defaults
    is_pushed = settings.pop("push_to_hub", False)
    push = {name: settings.pop(name) for name in _PUSH_NAMES & settings.keys()}
    shim = importlib.resources.files("hf_spectral.community") / pipe.shim_name
    with writing(folder, "save_directory", kind="folder"):
        folder.mkdir(parents=True, exist_ok=True)
        save(folder, **settings)
        (folder / pipe.shim_name).write_bytes(shim.read_bytes())
        if defaults.get("basis") is not None:
            # The names of the user's unreadable files are private.
            dataclasses.replace(as_basis(defaults["basis"]), skipped=()).save_pretrained(folder / BASIS_FOLDER)
        card = type(pipe)._hub("pipeline_card")(pipe, push.get("repo_id", folder.name))
        (folder / "README.md").write_text(card, encoding="utf-8")
    if is_pushed:
        pipe.push_to_hub(**{"repo_id": folder.name, **push})


def amend(path: Path, **values: Any) -> None:
    """Set values in a JSON file that the host has written.

    Args:
        path: The file.
        **values: JSON values by name.
    """
    described = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
        "defaults": storable(defaults),
        "backbone": {name: backbone[name] for name in ("id", "revision")},
    }
    return {TASK: entry}


def storable(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults as JSON values.

    Args:
        defaults: Of a pipeline, by name.

    Returns:
        JSON values by name; for a basis its folder.

    Raises:
        SpectralError: If a default is an object of the user's own, which no file can name.
    """
    return {name: _storable(name, value) for name, value in defaults.items()}


def restored(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults from what `storable` gave, but for the basis.

    Args:
        stored: JSON values by name.

    Returns:
        Settings by name.

    Raises:
        SpectralError: If one stands for an object that is not known.
    """
    if not isinstance(stored, Mapping):
        expected = "settings by name, as `save_pretrained` keeps them"
        raise SpectralError("defaults", expected=expected, got=repr(stored)[:60], fix="Save the pipeline again")
    defaults = dict(stored)
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
    return defaults


def basis_beside(source: str | os.PathLike[str], revision: str | None) -> SpectralBasis:
    """Return the default basis of a saved pipeline.

    Args:
        source: Folder or repository of the pipeline.
        revision: Commit of the repository.

    Returns:
        The basis.

    Raises:
        SpectralError: If it cannot be read.
    """
    place = Path(source)
    if not place.is_dir():
        place = fetch(str(source), [f"{BASIS_FOLDER}/{name}" for name in SpectralBasis._files], revision=revision)
    return SpectralBasis.from_pretrained(place / BASIS_FOLDER)


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
    defaults = restored(saved_entry(config).get("defaults", {}))
    require_known(defaults, SETTINGS | HOST_NAMES)
    if "basis" in defaults and "basis" not in given:
        defaults["basis"] = basis_beside(config.name_or_path, cached_commit(config))
    return defaults


def _has_adapters(model: nn.Module) -> bool:
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def _storable(name: str, value: Any) -> Any:
    """Return a default as JSON values, from which the constructor makes the same default again."""
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
    """Return a numpy number or array, or a range, as JSON values."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return list(value) if isinstance(value, range) else json.JSONEncoder().default(value)
