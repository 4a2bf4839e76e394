"""The choices of a visitor, and their limits."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hf_spectral import SpectralError

PATHWAYS = ("both", "where", "what")
RESOLUTIONS = (336, 448, 560, 672, 784)
DEFAULT_RESOLUTION = 560
NUM_EIGENVECTORS = (4, 32)
NUM_SEGMENTS = (2, 32)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One visitor's choices, checked.

    Args:
        model: Repository, or "" for the default backbone.
        basis: Repository, or "" for the picture's own eigenvectors.
        pathway: "where", "what" or "both".
        num_eigenvectors: The trivial one not counted.
        num_segments: A number, or "auto".
        resolution: Longer side in pixels, None for the backbone's (or the basis') own, or "auto" for
            `DEFAULT_RESOLUTION` where the backbone reads it, and its own elsewhere.
    """

    model: str
    basis: str
    pathway: Literal["where", "what", "both"]
    num_eigenvectors: int
    num_segments: int | Literal["auto"]
    resolution: int | Literal["auto"] | None


def settings_of(
    model: Any, basis: Any, pathway: Any, num_eigenvectors: Any, num_segments: Any, resolution: Any
) -> Settings:
    """Check the values that a form, or any other client, has sent.

    Args:
        model: Repository; nothing stands for the default.
        basis: Repository; nothing stands for none.
        pathway: "where", "what" or "both".
        num_eigenvectors: 4 to 32.
        num_segments: 2 to 32, or "auto".
        resolution: One of `RESOLUTIONS`, "auto", or nothing for the backbone's own.

    Returns:
        The settings.

    Raises:
        SpectralError: If a value lies outside.
    """
    if pathway not in PATHWAYS:
        raise SpectralError("pathway", expected=" or ".join(PATHWAYS), got=_short(pathway), fix="Choose one")
    if resolution not in (None, "", "auto", *RESOLUTIONS):
        raise SpectralError(
            "resolution",
            expected=f"one of {', '.join(map(str, RESOLUTIONS))}, auto, or the backbone's own",
            got=_short(resolution),
            fix="Choose one",
        )
    return Settings(
        model=str(model or "").strip(),
        basis=str(basis or "").strip(),
        pathway=pathway,
        num_eigenvectors=_count("eigenvectors", num_eigenvectors, NUM_EIGENVECTORS),
        num_segments="auto" if num_segments == "auto" else _count("segments", num_segments, NUM_SEGMENTS),
        resolution=resolution or None,
    )


def _count(name: str, value: Any, bounds: tuple[int, int]) -> int:
    try:
        count = int(value)
        is_inside = float(value) == count and bounds[0] <= count <= bounds[1]
    except (TypeError, ValueError, OverflowError):
        is_inside = False
    if not is_inside:
        choice = " or auto" if bounds == NUM_SEGMENTS else ""
        raise SpectralError(
            name,
            expected=f"a number from {bounds[0]} to {bounds[1]}{choice}",
            got=_short(value),
            fix="Choose within that range",
        )
    return count


def _short(value: Any) -> str:
    return repr(value)[:80]
