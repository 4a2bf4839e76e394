"""The arguments of a call of the pipeline, sorted and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_spectral.basis import SpectralBasis
from hf_spectral.config import PATHWAYS, SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.solvers import EigenSolver, GradientSolver, Solver

SOLVERS: dict[str, type[Solver]] = {"eigen": EigenSolver, "gradient": GradientSolver}
SPECTRAL_NAMES = frozenset(field.name for field in dataclasses.fields(SpectralConfig))
SEGMENT_NAMES = frozenset({"num_segments", "method", "instances"})
READ_NAMES = frozenset({"resolution", "timeout"})
BASIS_NAMES = frozenset({"basis", "diffusion"})


def configs_of(settings: Mapping[str, Any]) -> list[SpectralConfig]:
    """Return the settings of each pathway asked for.

    Args:
        settings: Arguments of a call, by name.

    Returns:
        One, or one for each of "where" and "what".

    Raises:
        SpectralError: If a value is out of range.
    """
    settings = {name: value for name, value in settings.items() if name != "solver"}
    if settings.get("pathway") != "both":
        return [SpectralConfig(**settings)]
    if settings.get("affinity") == "attention":
        raise SpectralError(
            "affinity", expected="one that serves both pathways", got="'attention'", fix="Leave it out for the defaults"
        )
    return [SpectralConfig(**{**settings, "pathway": pathway}) for pathway in PATHWAYS]


def require_no_rival(settings: Mapping[str, Any]) -> None:
    """Refuse settings of an image's own problem beside a basis, which brings its own.

    Args:
        settings: Arguments by name, the basis among them.

    Raises:
        SpectralError: If there are any.
    """
    basis: SpectralBasis = settings["basis"]
    rivals = sorted(set(settings) & (SPECTRAL_NAMES | {"solver"}))
    if settings.get("pathway") == basis.config.pathway:
        rivals.remove("pathway")
    if rivals:
        raise SpectralError(
            rivals[0],
            expected=f"none beside a basis, which was fitted for {basis.config.pathway!r}",
            got=settings[rivals[0]],
            fix="Leave it out, or fit another basis",
        )


def as_solver(solver: Any) -> Solver:
    """Return the solver that a name stands for.

    Args:
        solver: A name or a solver.

    Returns:
        The solver.

    Raises:
        SpectralError: If it is neither.
    """
    if isinstance(solver, Solver):
        return solver
    if solver in SOLVERS:
        return SOLVERS[solver]()
    raise SpectralError(
        "solver",
        expected=f"one of {', '.join(map(repr, SOLVERS))} or a solver object",
        got=repr(solver),
        fix="Choose one",
    )
