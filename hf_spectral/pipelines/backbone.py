"""What identifies a backbone, so that a basis can refuse another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_spectral.capture import vision_tower


def describe_backbone(model: Any, image_processor: Any, resolution: int | None = None) -> dict[str, Any]:
    """Describe a backbone and how it is fed, without a path of this machine.

    Args:
        model: The model; its vision tower counts.
        image_processor: Its processor.
        resolution: Longer side of the pictures it was shown, in pixels; None stands for its own size.

    Returns:
        `id` (repository, or the last part of a folder's name), `revision` (commit, if it came from the Hub),
        `model_type`, `hidden_size`, `num_layers`, `processor` (class), `resolution`: JSON values.
    """
    tower: Any = vision_tower(model)
    config = tower.config
    return {
        "id": public_name(str(getattr(model.config, "name_or_path", "") or "")),
        "revision": getattr(model.config, "_commit_hash", None),
        "model_type": config.model_type,
        "hidden_size": _plain(getattr(config, "hidden_size", None)),
        "num_layers": _plain(getattr(config, "num_hidden_layers", None)),
        # The two backends of one processor differ in resizing, which the pipeline does itself.
        "processor": type(image_processor).__name__.removesuffix("Pil").removesuffix("Fast"),
        "resolution": resolution,
    }


def public_name(name: str) -> str:
    """Return a repository id as it is and of a folder its own name only: where it lies is nobody's business.

    Args:
        name: Repository id or path.

    Returns:
        A name that may be published.
    """
    is_local = Path(name).is_absolute() or Path(name).is_dir() or name.count("/") > 1 or "\\" in name
    return Path(name.replace("\\", "/")).name if is_local else name


def _plain(value: Any) -> Any:
    return [int(part) for part in value] if isinstance(value, (list, tuple)) else value
