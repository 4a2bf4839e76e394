"""Find the library that a model belongs to, by small requests and without loading the model."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError

from hf_spectral.basis.files import FORMAT
from hf_spectral.errors import SpectralError
from hf_spectral.hub_errors import said_plainly
from hf_spectral.tensor_files import DAMAGE, one_line, parse_json

if TYPE_CHECKING:
    from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

Host = Literal["transformers", "diffusers", "basis"]

_DIFFUSERS_INDEX, _CONFIG = "model_index.json", "config.json"


def host_of(
    model: Any, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Host:
    """Return the library that a model is loaded by.

    A folder is looked into; of a repository, the cache is asked first and then the Hub, whether it has a
    `model_index.json`, a file of a few hundred bytes that every diffusers pipeline has, and else for its `config.json`.

    Args:
        model: Repository id, folder, model or pipeline; None is the default backbone.
        revision: Branch, tag or commit of the repository.
        token: Token of the Hub.
        cache_dir: Folder of the downloads; None takes the shared one.

    Returns:
        "transformers" or "diffusers"; "basis" for a basis, which names its backbone.

    Raises:
        SpectralError: If it belongs to none of these, is a part of a diffusers pipeline, or cannot be found.
    """
    if model is None:
        return "transformers"
    if not isinstance(model, (str, os.PathLike)):
        return _host_of_object(model)
    index, config = _files_of(str(model), revision=revision, cache_dir=cache_dir, token=token)
    if index is not None:
        return "diffusers"
    return "transformers" if config is None else _host_of_config(config, model)


def in_transformers(model: Any) -> Any:
    """Return a timm model in the class that transformers has for it; anything else as it came.

    Args:
        model: A model of any host.

    Returns:
        A transformers model around the same module, which is not copied; its mode is that of the module.
    """
    if not any(one.__module__.startswith("timm.") for one in type(model).__mro__):
        return model
    from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperModel

    stated = dict(getattr(model, "pretrained_cfg", None) or {})
    config = TimmWrapperConfig(architecture=stated.get("architecture", type(model).__name__), pretrained_cfg=stated)
    # The constructor would build another model of this architecture.
    wrapper: Any = TimmWrapperModel.__new__(TimmWrapperModel)
    PreTrainedModel.__init__(wrapper, config)
    wrapper.timm_model, wrapper.features_only = model, False
    return wrapper.train(model.training)


def diffusion_pipeline(model: Any, device: Any = None, **kwargs: Any) -> SpectralDiffusionPipeline:
    """Load a diffusers pipeline, or build one around the components of another.

    Args:
        model: Repository id, folder, or a pipeline, which stays where and as it is.
        device: As for `transformers.pipeline`; None takes the first accelerator, else the CPU, for what is loaded.
        **kwargs: As for `DiffusionPipeline.from_pretrained`, e.g. `dtype`, `device_map`, `revision`; and as for
            `SpectralDiffusionPipeline.at`, the defaults of calls.

    Returns:
        The pipeline.

    Raises:
        SpectralError: If diffusers is not installed, or a default is unknown or out of range.
    """
    from hf_spectral.pipelines.diffusers import SETTINGS, SpectralDiffusionPipeline

    defaults = {name: kwargs.pop(name) for name in SETTINGS & set(kwargs)}
    if not isinstance(model, (str, os.PathLike)):
        found = SpectralDiffusionPipeline.from_pipe(model, **kwargs)
        found = found if device is None else found.to(checked_device(device))
    else:
        found = SpectralDiffusionPipeline.from_pretrained(model, **kwargs)
        found = found if "device_map" in kwargs else found.to(checked_device(device))
    return found.at(**defaults) if defaults else found


def checked_device(device: Any) -> torch.device:
    """Return a device, after checking that a number can be written there and read back.

    Args:
        device: As for `transformers.pipeline`: a name, an index of an accelerator, or -1 for the CPU; None takes the
            first accelerator, else the CPU.

    Returns:
        The device.

    Raises:
        SpectralError: If it is no device of this machine.
    """
    if device is None:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        found = torch.device("cpu" if type(device) is int and device == -1 else device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
        raise SpectralError(
            "device",
            expected="a device of this machine, such as 'cpu', 'cuda:0' or 'mps'",
            got=f"{device!r} ({one_line(error)})",
            fix="Leave it out for the first accelerator, else the CPU",
        ) from error
    return found


def _host_of_object(model: Any) -> Host:
    ancestors = {(one.__module__.partition(".")[0], one.__name__) for one in type(model).__mro__}
    if ("diffusers", "DiffusionPipeline") in ancestors:
        return "diffusers"
    packages = {package for package, _ in ancestors}
    if packages & {"transformers", "timm"} and "diffusers" not in packages:
        return "transformers"
    name = type(model).__name__
    raise _part_of_a_pipeline(name) if "diffusers" in packages else _not_found(name, "an object of neither")


def _files_of(model: str, token: str | bool | None, **cache: Any) -> list[Path | None]:
    """Return the pipeline index and the configuration from a folder, the cache or the Hub; None if there is none."""
    names = (_DIFFUSERS_INDEX, _CONFIG)
    if Path(model).is_dir():
        found = [Path(model) / name if (Path(model) / name).is_file() else None for name in names]
        if not any(found):
            raise _not_found(model, f"a folder with neither {_DIFFUSERS_INDEX} nor {_CONFIG}")
        return found
    try:
        index, config = (try_to_load_from_cache(model, name, **cache) for name in names)
        # The Hub is asked only if the cache does not know whether a file exists; the answer is cached.
        if not isinstance(config, str):
            if index is None:
                with contextlib.suppress(RemoteEntryNotFoundError):
                    index = hf_hub_download(model, _DIFFUSERS_INDEX, token=token, **cache)
            if config is None and not isinstance(index, str):
                with contextlib.suppress(RemoteEntryNotFoundError):
                    config = hf_hub_download(model, _CONFIG, token=token, **cache)
    except GatedRepoError as error:
        with said_plainly(model, "model"):
            raise error
    except (OSError, ValueError) as error:  # No such repository, no Hub, or no name of a repository at all.
        raise _not_found(model, str(error).strip().partition("\n")[0]) from error
    return [Path(one) if isinstance(one, str) else None for one in (index, config)]


def _host_of_config(config: Path, model: Any) -> Host:
    try:
        described = parse_json(config.read_text(encoding="utf-8"))
    except DAMAGE as error:
        raise _not_found(model, f"its {_CONFIG} cannot be read: {one_line(error)}") from error
    described = described if isinstance(described, dict) else {}
    if "_class_name" in described:
        raise _part_of_a_pipeline(f"{str(model)!r}, which holds a {described['_class_name']} alone")
    return "basis" if described.get("format") == FORMAT else "transformers"


def _not_found(model: Any, reason: str) -> SpectralError:
    return SpectralError(
        "model",
        expected="a repository or folder of transformers or diffusers",
        got=f"{str(model)!r} ({reason})",
        fix="Check the name; without the Hub, give a folder, or call without `model` for the copy that is installed",
    )


def _part_of_a_pipeline(got: str) -> SpectralError:
    return SpectralError(
        "model",
        expected="a whole diffusers pipeline, which knows noise and prompts too",
        got=got,
        fix=f"Give the pipeline, or the folder above that holds {_DIFFUSERS_INDEX}",
    )
