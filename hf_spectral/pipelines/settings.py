"""The arguments of a call of the pipeline, sorted and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_spectral.basis import SpectralBasis
from hf_spectral.config import (
    AFFINITY_PARAMETERS,
    DEFAULT_AFFINITY,
    PATHWAYS,
    Pathway,
    SpectralConfig,
    require_positive_int,
)
from hf_spectral.errors import SpectralError
from hf_spectral.solvers import EigenSolver, GradientSolver, Solver
from hf_spectral.weighting import is_int

SOLVERS: dict[str, type[Solver]] = {"eigen": EigenSolver, "gradient": GradientSolver}
SPECTRAL_NAMES = frozenset(field.name for field in dataclasses.fields(SpectralConfig))
SEGMENT_NAMES = frozenset({"num_segments", "method", "instances"})
READ_NAMES = frozenset({"resolution", "timeout"})
BASIS_NAMES = frozenset({"basis", "diffusion"})
HOST_NAMES = frozenset({"batch_size", "num_workers", "image_column"})


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
    affinities = {pathway: settings.get("affinity") or DEFAULT_AFFINITY[pathway] for pathway in PATHWAYS}
    owners = {name: affinity for name, (affinity, _) in AFFINITY_PARAMETERS.items()}

    def serves(name: str, pathway: Pathway) -> bool:
        """A parameter goes to the pathways whose affinity has it; one that neither has is refused by both."""
        owner = owners.get(name)
        return owner is None or affinities[pathway] == owner or owner not in affinities.values()

    return [
        SpectralConfig(**{name: one for name, one in settings.items() if serves(name, pathway)} | {"pathway": pathway})
        for pathway in PATHWAYS
    ]


def over_defaults(defaults: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that hold in a call: what it says, None included, and else the pipeline's defaults.

    A basis that the call names takes the place of the default settings of an image's own problem; `basis=None` drops
    the default basis with its `diffusion`. Pictures are read at the resolution of the basis unless one is given.

    Args:
        defaults: Of the pipeline, by name.
        said: Arguments of the call, by name.

    Returns:
        Settings by name.

    Raises:
        SpectralError: If the call, or the defaults, name a basis and settings of an image's own problem.
    """
    replaced: frozenset[str] = frozenset()
    if "basis" in said:
        replaced = frozenset({"diffusion"}) if said["basis"] is None else SPECTRAL_NAMES | {"solver"}
    settings = {name: value for name, value in defaults.items() if name not in replaced} | dict(said)
    if settings.get("basis") is not None:
        _require_no_rival(settings)
        settings.setdefault("resolution", settings["basis"].backbone.get("resolution"))
    return settings


def check_batching(settings: Mapping[str, Any]) -> None:
    """Refuse sizes of batches and numbers of workers that the host would stumble over.

    Args:
        settings: Arguments by name, `batch_size` and `num_workers` among them or not; None leaves them to the host.

    Raises:
        SpectralError: If one is out of range.
    """
    batch_size, num_workers = settings.get("batch_size"), settings.get("num_workers")
    if batch_size is not None:
        require_positive_int("batch_size", batch_size)
    if num_workers is not None and not (is_int(num_workers) and num_workers >= 0):
        raise SpectralError(
            "num_workers", expected="an integer of at least 0", got=repr(num_workers), fix="Leave it out for none"
        )


def _require_no_rival(settings: Mapping[str, Any]) -> None:
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
    if isinstance(solver, str) and solver in SOLVERS:
        return SOLVERS[solver]()
    raise SpectralError(
        "solver",
        expected=f"one of {', '.join(map(repr, SOLVERS))} or a solver object",
        got=repr(solver),
        fix="Choose one",
    )
