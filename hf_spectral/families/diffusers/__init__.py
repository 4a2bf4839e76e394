"""The families of diffusers' denoisers. A new file in this folder is a new family; nothing else has to name it."""

from __future__ import annotations

import importlib
import pkgutil

from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised

__all__ = ["FAMILIES", "Condition", "DenoiserFamily", "Noised", "family_of"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

#: Each family by the name of its class.
FAMILIES: dict[str, DenoiserFamily] = {
    family.class_name: family() for family in sorted(DenoiserFamily.__subclasses__(), key=lambda one: one.class_name)
}


def family_of(denoiser: object) -> DenoiserFamily | None:
    """Return the family of a denoiser, also of one whose class is derived from a known one.

    Args:
        denoiser: A model, or its class.

    Returns:
        The family, or None if it is not known.
    """
    kind = denoiser if isinstance(denoiser, type) else type(denoiser)
    return next((FAMILIES[one.__name__] for one in kind.__mro__ if one.__name__ in FAMILIES), None)
