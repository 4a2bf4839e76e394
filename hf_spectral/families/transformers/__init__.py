"""The families of transformers' vision towers. A new file here is a new family; nothing else has to name it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from hf_spectral.families.transformers.base import Arranged, TowerCall, UnknownFamily, VisionFamily

__all__ = ["FAMILIES", "Arranged", "TowerCall", "VisionFamily", "family_of"]

#: Each family by every `model_type` that it serves.
FAMILIES: dict[str, VisionFamily] = {
    model_type: family
    for found in pkgutil.iter_modules(__path__)
    for family in vars(importlib.import_module(f"{__name__}.{found.name}")).values()
    if isinstance(family, VisionFamily)
    for model_type in family.model_types
}
_UNKNOWN = UnknownFamily()


def family_of(tower: Any) -> VisionFamily:
    """Return the family of a vision tower.

    Args:
        tower: A vision tower; its configuration tells.

    Returns:
        The family; one that reads plain layouts if it is not known.
    """
    return FAMILIES.get(tower.config.model_type, _UNKNOWN)
