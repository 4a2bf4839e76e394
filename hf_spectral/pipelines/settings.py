"""The arguments that calls of both pipelines take: declared and checked once."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args

from hf_spectral.affinities import PARAMETERS, Affinity, AffinityName
from hf_spectral.basis import SpectralBasis, as_basis
from hf_spectral.checks import require_int, require_number, require_one_of, require_positive_int
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.records import PATHWAYS, Heads, Pathway
from hf_spectral.segmentation import SegmentationMethod
from hf_spectral.solvers import EigenSolver, GradientSolver, Solver


class CallSettings(TypedDict, total=False):
    """Arguments that the calls of both pipelines take; `SpectralPathwaysPipeline.__call__` describes them."""

    pathway: Pathway | Literal["both"] | None
    num_eigenvectors: int | None
    num_segments: int | Literal["auto"] | None
    method: SegmentationMethod
    instances: bool
    return_result: bool
    as_json: bool
    solver: str | Solver | None
    affinity: Affinity | AffinityName | None
    temperature: float | None
    num_neighbors: int | None
    threshold: float | None
    heads: Heads
    layers: Sequence[int] | None
    layer_weights: Any
    seed: int | None
    resolution: int | None
    timeout: float | None
    basis: SpectralBasis | str | os.PathLike[str] | None
    walk: float | None


SETTINGS = frozenset(CallSettings.__annotations__)
SOLVERS: dict[str, type[Solver]] = {"eigen": EigenSolver, "gradient": GradientSolver}
_CONFIG_NAMES = frozenset(field.name for field in dataclasses.fields(SpectralConfig))
SPECTRAL_NAMES = _CONFIG_NAMES | PARAMETERS.keys()
READ_NAMES = frozenset({"resolution", "timeout"})
CUT_NAMES = frozenset({"num_segments", "method", "instances", "return_result", "as_json", "basis"})
PROBLEM_NAMES = SETTINGS - READ_NAMES - CUT_NAMES | {"basis"}  # A basis brings eigenvectors, and may bring clusters.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
HOST_NAMES = frozenset({"batch_size", "num_workers", "image_column"})


def configs_of(settings: Mapping[str, Any]) -> list[SpectralConfig]:
    """Return the settings of each pathway asked for, before any picture is read.

    Args:
        settings: Arguments of a call, by name; those of segmentation and reading are checked as well.

    Returns:
        One, or two for the pathway "both".

    Raises:
        SpectralError: If a value is out of range.
    """
    num_segments, method = settings.get("num_segments"), settings.get("method", "tree")
    if num_segments is not None and num_segments != "auto":
        require_positive_int("num_segments", num_segments)
    require_one_of("method", method, get_args(SegmentationMethod))
    if settings.get("timeout") is not None:
        require_number("timeout", settings["timeout"], 0, threading.TIMEOUT_MAX)
    if settings.get("as_json") and settings.get("return_result"):
        raise SpectralError("as_json", expected="this or `return_result`", got="both", fix="Give one of the two")
    own = {name: settings[name] for name in _CONFIG_NAMES & set(settings) if settings[name] is not None}
    pathways = [{"pathway": pathway} for pathway in PATHWAYS] if own.get("pathway") == "both" else [{}]
    configs = [SpectralConfig(**own | pathway) for pathway in pathways]
    for name, kind in PARAMETERS.items():
        if settings.get(name) is None:
            continue
        if not any(isinstance(config.affinity, kind) for config in configs):
            raise SpectralError(
                name,
                expected=f"none beside affinity={' and '.join(repr(config.affinity) for config in configs)}",
                got=repr(settings[name]),
                fix=f"Leave it out, or choose affinity={kind.name!r}, which it belongs to",
            )
        configs = [
            dataclasses.replace(one, affinity=dataclasses.replace(one.affinity, **{name: settings[name]}))
            if isinstance(one.affinity, kind)
            else one
            for one in configs
        ]
    return configs


def merged(defaults: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults, replaced by what a call says, None included.

    A basis in the call replaces the default settings of an image's own problem too; `basis=None` drops the default
    basis with its `walk`.

    Args:
        defaults: Settings by name.
        said: Settings of the call by name.

    Returns:
        Settings by name.
    """
    replaced: frozenset[str] = frozenset()
    if "basis" in said:
        replaced = frozenset({"walk"}) if said["basis"] is None else SPECTRAL_NAMES | {"solver"}
    return {name: value for name, value in defaults.items() if name not in replaced} | dict(said)


def over_defaults(defaults: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that hold in a call, `merged` from what it says and the defaults of the pipeline.

    Pictures are read at the resolution of the basis unless one is given.

    Args:
        defaults: Of the pipeline, by name.
        said: Arguments of the call, by name.

    Returns:
        Settings by name, `basis` and `solver` as objects.

    Raises:
        SpectralError: If the basis or the solver is not one, or the call or the defaults give a basis and settings of
            an image's own problem.
    """
    settings = merged(defaults, said)
    solver = settings.get("solver")
    if isinstance(solver, str) and solver in SOLVERS:
        settings["solver"] = SOLVERS[solver]()
    elif solver is not None and not isinstance(solver, Solver):
        expected = f"one of {', '.join(map(repr, SOLVERS))} or a solver object"
        raise SpectralError("solver", expected=expected, got=repr(solver), fix="Choose one")
    if settings.get("basis") is None:
        return settings
    basis = settings["basis"] = as_basis(settings["basis"])
    settings.setdefault("resolution", basis.backbone.get("resolution"))
    # A basis fixes the settings of an image's own problem.
    rivals = sorted(name for name in SPECTRAL_NAMES | {"solver"} if settings.get(name) is not None)
    if settings.get("pathway") == basis.config.pathway:
        rivals.remove("pathway")
    if rivals:
        raise SpectralError(
            rivals[0],
            expected=f"none beside a basis, which was fitted for {basis.config.pathway!r}",
            got=settings[rivals[0]],
            fix="Leave it out, or fit another basis",
        )
    return settings


def checked_batching(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the batch size and the number of workers before the host uses them.

    Args:
        settings: Arguments by name, `batch_size` and `num_workers` possibly among them; None leaves them to the host.

    Returns:
        The same arguments, these two as plain integers.

    Raises:
        SpectralError: If one is out of range.
    """
    checked = dict(settings)
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        if checked.get(name) is not None:
            checked[name] = require_int(name, checked[name], least)
    return checked
