"""The families of diffusers' denoisers. A new file in this folder is a new family; nothing else has to name it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from hf_spectral.errors import UnsupportedBackboneError
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
    raise UnsupportedBackboneError(
        "model",
        expected=f"a denoiser, one of {', '.join(FAMILIES)}",
        got=denoiser_class.__name__,
        fix="Give the `unet` or `transformer` of a pipeline of one of these families",
    )
