"""Whether a backbone is the one that a basis was fitted on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hf_spectral.errors import SpectralError


def require_same_backbone(stored: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Refuse another backbone.

    Args:
        stored: What a basis says about its own: names with JSON values.
        description: Of the one at hand; every stored name has to be there with the same value, but a `revision` that
            is None on either side, as it is where nobody has written it down.

    Raises:
        SpectralError: If any differs; all that differ are named.
    """
    is_known = None not in (stored.get("revision"), description.get("revision"))
    compared = [name for name in stored if name != "revision" or is_known]
    differing = [name for name in compared if description.get(name) != stored[name]]
    if differing:
        raise SpectralError(
            "basis",
            expected="the backbone it was fitted on, " + _listed(stored, differing),
            got=_listed(description, differing),
            fix="Load that backbone, or fit a basis on this one",
        )


def _listed(values: Mapping[str, Any], names: Iterable[str]) -> str:
    return ", ".join(f"{name}={values.get(name)!r}" for name in names)
