"""The families of diffusers' denoisers. A new file in this folder is a new family; nothing else has to name it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

from hf_spectral.errors import refuse_backbone
from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised

__all__ = ["FAMILIES", "Condition", "DenoiserFamily", "Noised", "family_of"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def _families(base: type[DenoiserFamily]) -> Iterator[type[DenoiserFamily]]:
    for one in base.__subclasses__():
        yield from (one,) if "class_name" in vars(one) else _families(one)


#: Each family by the name of its class.
FAMILIES: dict[str, DenoiserFamily] = {
    family.class_name: family() for family in sorted(_families(DenoiserFamily), key=lambda one: one.class_name)
}


# Why a class is of no family, by a pattern in its name.
_OTHERWISE = {
    "1D|Audio|Music|Speech": "it makes sound, not pictures",
    "3D|Video|Motion|Temporal|I2V": "its tokens are laid out in three dimensions, as those of videos",
    "Prior|Protein": "it makes no pictures",
}


def family_of(denoiser_class: type) -> DenoiserFamily:
    """Return the family of a class of denoisers, also of one that is derived from a known class.

    Args:
        denoiser_class: Class of a model.

    Returns:
        The family.

    Raises:
        UnsupportedBackboneError: If the class is of no known family.
    """
    for ancestor in denoiser_class.__mro__:
        if ancestor.__name__ in FAMILIES:
            return FAMILIES[ancestor.__name__]
        if ancestor.__module__.startswith("diffusers."):  # What the host derives from a known class is another model.
            break
    reasons = (reason for pattern, reason in _OTHERWISE.items() if re.search(pattern, denoiser_class.__name__))
    refuse_backbone(
        denoiser_class.__name__,
        next(reasons, "it is not known where its image tokens stand"),
        f"a denoiser, one of {', '.join(FAMILIES)}",
        "Give the `unet` or `transformer` of a pipeline of one of these families",
    )
