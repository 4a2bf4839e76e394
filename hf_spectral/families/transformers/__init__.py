"""The families of transformers' vision towers. A new file here is a new family; nothing else has to name it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from hf_spectral.families.transformers.base import Arranged, TowerCall, UnknownFamily, VisionFamily

__all__ = ["FAMILIES", "Arranged", "TowerCall", "VisionFamily", "family_of", "is_known"]

#: Each family by every `model_type` that it serves, or by package and class, e.g. `timm.VisionTransformer`.
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
        tower: A vision tower; its class tells, or its configuration.

    Returns:
        The family; one that reads plain layouts if it is not known.
    """
    module = getattr(tower, "timm_model", tower)
    ancestors = [(one.__module__.partition(".")[0], one.__name__) for one in type(module).__mro__]
    names = [f"{package}.{name}" for package, name in ancestors]
    names += [getattr(getattr(tower, "config", None), "model_type", ""), f"{ancestors[0][0]}.*"]
    return next((FAMILIES[name] for name in names if name in FAMILIES), _UNKNOWN)


def is_known(module: Any) -> bool:
    """Tell whether a module is a vision tower of a family.

    Args:
        module: Any module.

    Returns:
        True if a family serves its class or its `model_type`.
    """
    return family_of(module) is not _UNKNOWN
