"""What a run was asked to do: everything that a card needs to reproduce it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from hf_spectral.errors import SpectralError
from hf_spectral.weighting import Weighting, as_weighting

Pathway = Literal["where", "what"]
Affinity = Literal["attention", "exponential", "cosine", "knn"]
Heads = Literal["merged", "separate"]
_P = ParamSpec("_P")
_R = TypeVar("_R")

PATHWAYS: tuple[Pathway, ...] = get_args(Pathway)
AFFINITIES: tuple[Affinity, ...] = get_args(Affinity)
DEFAULT_AFFINITY: dict[Pathway, Affinity] = {"where": "attention", "what": "exponential"}


@dataclasses.dataclass(frozen=True)
class SpectralConfig:
    """Settings of one joint spectral problem.

    Args:
        pathway: `"where"` compares queries with keys (spatial layout), `"what"` compares values with values (identity).
        affinity: How two tokens are compared; `None` takes the pathway's default, `attention` for `where` and
            `exponential` for `what`. `attention` exists for `where` only.
        heads: `"merged"` builds one affinity a layer (the mean over heads of the attention, or the cosine over the
            full width); `"separate"` builds one a head and averages the normalized affinities.
        num_eigenvectors: Eigenvectors to return, the trivial one at index 0 among them; at least 1.
        layers: Indices of the layers to use, in call order, negative ones counted from the end; `None` means all.
        temperature: tau of the `exponential` affinity exp((cos - 1) / tau), above 0. None takes 0.35 times the standard
            deviation of the layer's own cosines (at least 0.08), so that every layer is equally selective.
        num_neighbors: Neighbors a token keeps in the `knn` affinity.
        threshold: Cosines at or below it are cut from the `knn` affinity.
        seed: Seed of every random start.
        layer_weights: `"equal"`; `"auto"`, found without labels (see `graph` for an image, `fit` for a dataset);
            one number a layer from layer 0 on; or numbers by layer index. Numbers are kept as pairs of index and
            weight, and scaled to sum to 1 where they are used; a layer without one takes no part.

    Raises:
        SpectralError: If a value lies outside the range given above.
    """

    pathway: Pathway = "what"
    affinity: Affinity | None = None
    heads: Heads = "merged"
    num_eigenvectors: int = 16
    layers: tuple[int, ...] | None = None
    temperature: float | None = None
    num_neighbors: int = 50
    threshold: float = 0.1
    seed: int = 0
    layer_weights: Weighting = "equal"

    def __post_init__(self) -> None:
        """Resolve the default affinity and refuse values out of range."""
        _require_one_of("pathway", self.pathway, PATHWAYS)
        if self.affinity is None:
            object.__setattr__(self, "affinity", DEFAULT_AFFINITY[self.pathway])
        _require_one_of("affinity", self.affinity, AFFINITIES)
        _require_one_of("heads", self.heads, get_args(Heads))
        if self.affinity == "attention" and self.pathway == "what":
            raise SpectralError(
                "affinity",
                expected="'exponential', 'cosine' or 'knn' for the 'what' pathway",
                got="'attention'",
                fix="Attention compares queries with keys: ask for pathway='where', or choose another affinity",
            )
        require_positive_int("num_eigenvectors", self.num_eigenvectors)
        require_positive_int("num_neighbors", self.num_neighbors)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise SpectralError("seed", expected="an integer", got=repr(self.seed), fix="Leave it out for 0")
        if not _is_number(self.threshold):
            raise SpectralError("threshold", expected="a finite number", got=repr(self.threshold), fix="Leave it out")
        if self.temperature is not None and not (_is_number(self.temperature) and self.temperature > 0):
            raise SpectralError(
                "temperature", expected="a number above 0, or None", got=self.temperature, fix="Leave it out"
            )
        object.__setattr__(self, "layer_weights", as_weighting(self.layer_weights))
        if self.layers is not None:
            object.__setattr__(self, "layers", _as_layer_indices(self.layers))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SpectralConfig:
        """Build the settings from what `to_dict` gave.

        Args:
            values: Every field's name with its value; a list stands for the tuple of layers.

        Returns:
            The validated settings.

        Raises:
            SpectralError: If a name is unknown or missing, or a value is out of range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise SpectralError(
                "config",
                expected=f"the fields {', '.join(sorted(names))}",
                got=f"unknown {sorted(set(values) - names)}, missing {sorted(names - set(values))}",
                fix="Update hf-spectral",
            )
        return cls(**values)


def defaults_hold(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let the defaults of a pipeline stand in for the arguments that a call leaves out.

    What the call says holds, None included; else the default given to the pipeline; else that of the signature.

    Args:
        function: Its first parameter is the pipeline, whose `defaults` are settings by name. A default `pathway` stands
            in for `pathways` too.

    Returns:
        The function, with the same signature.

    Raises:
        SpectralError: In a call whose first argument is no pipeline.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        said = signature.bind_partial(*args, **kwargs)
        pipe: Any = next(iter(said.arguments.values()), None)
        if not hasattr(pipe, "defaults"):
            raise SpectralError(
                "pipe",
                expected="a pipeline of hf_spectral",
                got=f"a {type(pipe).__name__}",
                fix="Make one: pipe = hf_spectral.pipeline(model)",
            )
        defaults = dict(pipe.defaults)
        if "pathway" in defaults:
            both = defaults["pathway"] == "both"
            defaults["pathways"] = PATHWAYS if both else (defaults["pathway"],)
        names = signature.parameters.keys() & defaults.keys() - said.arguments.keys()
        return function(*said.args, **said.kwargs, **{name: defaults[name] for name in names})

    return call


def resolve_layers(layers: Iterable[int], num_layers: int) -> frozenset[int]:
    """Turn layer indices, negative ones among them, into positions from 0.

    Args:
        layers: Indices from `-num_layers` to `num_layers - 1`.
        num_layers: Attention layers of the backbone.

    Returns:
        The positions.

    Raises:
        SpectralError: If an index lies outside the range, or there is none.
    """
    layers = tuple(layers)
    outside = [index for index in layers if not -num_layers <= index < num_layers]
    if outside or not layers:
        raise SpectralError(
            "layers",
            expected=f"indices from {-num_layers} to {num_layers - 1} for {num_layers} attention layers, at least one",
            got=outside or "none",
            fix="Leave `layers` out to use all of them",
        )
    return frozenset(index % num_layers for index in layers)


def require_positive_int(argument: str, value: object) -> None:
    """Refuse anything but an integer of at least 1.

    Args:
        argument: Name to show in the message.
        value: The value to check.

    Raises:
        SpectralError: If `value` is not an integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpectralError(argument, expected="an integer of at least 1", got=repr(value), fix="Give a count")


def _require_one_of(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise SpectralError(argument, expected=f"one of {names}", got=repr(value), fix="Choose one of these names")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_layer_indices(layers: Any) -> tuple[int, ...]:
    try:
        indices = tuple(layers)
    except TypeError:
        indices = ()
    if not indices or any(isinstance(index, bool) or not isinstance(index, int) for index in indices):
        raise SpectralError(
            "layers", expected="a non-empty sequence of integers", got=repr(layers), fix="Give e.g. layers=[8, 9, 10]"
        )
    return indices
