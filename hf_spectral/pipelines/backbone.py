"""What both pipelines say about a backbone: its identity, why it fails, and how it reads pictures."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from hf_spectral.basis import SpectralBasis
from hf_spectral.capture import attention_fingerprint, vision_tower
from hf_spectral.errors import STRUCTURE_ERRORS, HFSpectralError, SpectralError, refuse_backbone
from hf_spectral.tensor_files import one_line

TASK = "spectral-pathways"


def describe_backbone(model: Any, image_processor: Any, resolution: int | None = None) -> dict[str, Any]:
    """Describe a backbone and how it reads pictures, without a path of this machine.

    Args:
        model: The model; its vision tower counts.
        image_processor: Its processor.
        resolution: Longer side of the pictures it was shown, in pixels; None stands for its own size.

    Returns:
        `id` (repository, or the last part of a folder's name), `revision` (commit, if it came from the Hub and is
        known; both are of a saved pipeline those of the backbone that it was made with), `model_type`, `hidden_size`,
        `num_layers`, `processor` (class), `resolution`, `attention_weights` (see `attention_fingerprint`): JSON values.
    """
    tower: Any = vision_tower(model)
    config = tower.config
    saved = saved_entry(model.config).get("backbone")
    name = str(getattr(model.config, "name_or_path", "") or "")
    return {
        "id": public_name(name) if saved is None else saved.get("id"),
        "revision": cached_commit(model.config) if saved is None else saved.get("revision"),
        "model_type": config.model_type,
        "hidden_size": _plain(getattr(config, "hidden_size", None)),
        "num_layers": _plain(getattr(config, "num_hidden_layers", None)),
        # The two backends of one processor differ in resizing, which the pipeline does itself.
        "processor": type(image_processor).__name__.removesuffix("Pil").removesuffix("Fast"),
        "resolution": resolution,
        "attention_weights": attention_fingerprint(model),
    }


def basis_at(source: Any, hub: Mapping[str, Any]) -> SpectralBasis:
    """Read the basis that is given in place of a model.

    Args:
        source: Its folder or repository.
        hub: Arguments of a host's `from_pretrained`, by name; those that concern the Hub are obeyed.

    Returns:
        The basis.

    Raises:
        SpectralError: If it cannot be read.
    """
    names = ("revision", "cache_dir", "token", "local_files_only")
    return SpectralBasis.from_pretrained(source, **{name: hub[name] for name in names if hub.get(name) is not None})


def backbone_of(basis: SpectralBasis, host: str | None = None) -> tuple[str, str | None]:
    """Return where the backbone of a basis is loaded from.

    Args:
        basis: The basis, an adapter of that backbone.
        host: "transformers" if it is to be a model of that library; None takes diffusion models too.

    Returns:
        Repository id or folder, and its revision, if the basis knows one.

    Raises:
        SpectralError: If the basis names neither, or the backbone is of another host.
    """
    from hf_spectral.pipelines.transformers.offline import OFFLINE_NAME, offline_backbone

    name, revision = basis.backbone.get("id"), basis.backbone.get("revision")
    if host is not None and "timesteps" in basis.backbone:
        raise SpectralError(
            "model",
            expected=f"a basis of a model of {host}",
            got=f"one of the diffusion model {name!r}",
            fix="Load it by hf_spectral.pipeline",
        )
    if name == OFFLINE_NAME:
        return str(offline_backbone()), None
    if isinstance(name, str) and name and ("/" in name or Path(name).is_dir()):
        return name, None if revision is None else str(revision)
    raise SpectralError(
        "model",
        expected="a basis that names the repository of its backbone",
        got=f"one of {name!r}, which came from a folder" if name else "one that names none",
        fix="Give both: pipeline(model=<the backbone>, basis=<the basis>)",
    )


@contextlib.contextmanager
def blamed(model: Any, size: tuple[int, int], read: Callable[[Image.Image, int | None], object]) -> Iterator[None]:
    """Name the model, or the resolution, in the error of the block if a black picture fails as its picture did.

    Args:
        model: What reads the picture.
        size: Height and width at which it is read, in pixels.
        read: Reads a picture at a resolution, as the block does.

    Yields:
        Nothing.

    Raises:
        UnsupportedBackboneError: If a black picture of these proportions fails at the model's own resolution.
        SpectralError: If it fails only at this one.
        STRUCTURE_ERRORS: The error of the block, if no black picture fails.
    """

    def fails(resolution: int | None) -> bool:
        try:
            read(Image.new("RGB", (size[1], size[0])), resolution)
        except STRUCTURE_ERRORS as again:
            return not isinstance(again, HFSpectralError)  # That is another error with its own message.
        return False

    try:
        yield
    except STRUCTURE_ERRORS as error:
        if isinstance(error, (HFSpectralError, torch.OutOfMemoryError)):
            raise
        said = f"{type(error).__name__}: {one_line(error)}"
        if fails(None):
            refuse_backbone(type(model).__name__, f"no picture can be read: {said}", cause=error)
        if fails(max(size)):
            raise SpectralError(
                "resolution",
                expected="a size that the backbone reads",
                got=f"{size[0]} x {size[1]} pixels ({said})",
                fix="Leave it out, or give another one",
            ) from error
        raise


def warn_once(pipe: Any, group: Iterable[Mapping[str, Any]]) -> None:
    """Warn once per pipeline of a note about how it reads pictures; every result has its notes anyway.

    Args:
        pipe: The pipeline, which remembers that it has warned.
        group: Pictures, as its `preprocess` returned them.
    """
    notes = [note for prepared in group for note in prepared["notes"]]
    if notes and not getattr(pipe, "_has_warned", False):
        pipe._has_warned = True
        warnings.warn(f"{notes[0]} This is said once; `notes` of each result say it too.", stacklevel=2)


def public_name(name: str) -> str:
    """Return a repository id unchanged, and only the last part of a path: paths of a machine are private.

    Args:
        name: Repository id or path.

    Returns:
        A name that may be published.
    """
    is_local = Path(name).is_absolute() or Path(name).is_dir() or name.count("/") > 1 or "\\" in name
    return Path(name.replace("\\", "/")).name if is_local else name


def saved_entry(config: Any) -> dict[str, Any]:
    """Return what a saved pipeline keeps in the configuration of its backbone, see `saved.described`.

    Args:
        config: Of any backbone.

    Returns:
        `defaults` and `backbone`, JSON values by name; empty for a backbone that is no saved pipeline.
    """
    tasks = getattr(config, "custom_pipelines", None)
    entry = tasks.get(TASK) if isinstance(tasks, dict) else None
    return {name: part for name, part in entry.items() if isinstance(part, dict)} if isinstance(entry, dict) else {}


def cached_commit(config: Any) -> str | None:
    """Find the commit of a backbone in the cache it was loaded from: transformers no longer records it.

    Args:
        config: Of the backbone.

    Returns:
        The commit, if the cache holds one of this repository and no other.
    """
    name = str(getattr(config, "name_or_path", "") or "")
    if name != public_name(name) or "/" not in name:
        return None
    cached = try_to_load_from_cache(name, "config.json")
    if not isinstance(cached, str):
        return None
    snapshots = [path.parent.name for path in Path(cached).parents[1].glob("*/config.json")]
    return snapshots[0] if len(snapshots) == 1 else None


def _plain(value: Any) -> Any:
    return [int(part) for part in value] if isinstance(value, (list, tuple)) else value
