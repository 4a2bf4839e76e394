"""What a run was asked to do: everything that a card needs to reproduce it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from hf_spectral.errors import SpectralError
from hf_spectral.layer_weights import Weighting, as_weighting, is_int, is_number

Pathway = Literal["where", "what"]
Affinity = Literal["attention", "exponential", "cosine", "knn"]
Heads = Literal["merged", "separate"]
_P = ParamSpec("_P")
_R = TypeVar("_R")

PATHWAYS: tuple[Pathway, ...] = get_args(Pathway)
AFFINITIES: tuple[Affinity, ...] = get_args(Affinity)
DEFAULT_AFFINITY: dict[Pathway, Affinity] = {"where": "attention", "what": "exponential"}
#: The affinity that each parameter belongs to, and its default; beside another affinity the parameter is None.
AFFINITY_PARAMETERS: dict[str, tuple[Affinity, int | float | None]] = {
    "temperature": ("exponential", None),
    "num_neighbors": ("knn", 50),
    "threshold": ("knn", 0.1),
}
# A cosine in float32 is known to about 1e-7: at a lower temperature exp(cos / tau) would be rounding noise, and at a
# higher one than the inverse every affinity would be 1.
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-4, 1e4
# What every generator accepts: torch, numpy, and scikit-learn, whose range is the smallest.
_MOST_SEED = 2**32 - 1


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
        layers: Indices of the layers to use, in call order from 0, negative ones counted from the last attention layer
            of the backbone; None means all.
        temperature: tau of the `exponential` affinity exp((cos - 1) / tau), from 1e-4 to 1e4. None takes 0.35 times the
            standard deviation of the layer's own cosines (at least 0.08), so that every layer is equally selective.
        num_neighbors: Neighbors that a token keeps in the `knn` affinity, at least 1; None takes 50.
        threshold: Cosines at or below it are cut from the `knn` affinity, from 0 to 1; None takes 0.1.
        seed: Seed of every random start, from 0 to 2**32 - 1.
        layer_weights: `"equal"`; `"auto"`, found without labels (see `graph` for an image, `fit` for a dataset);
            numbers by layer index, where a layer left out takes no part; or one number per layer that takes part (named
            by `layers` and able to serve the pathway), in ascending order of its index, as many as there are such
            layers. Numbers are at least 0, differ by a factor of a million at most, and are scaled to sum to 1 where
            they are used. All timesteps of a layer share its weight.

    A parameter of an affinity that is not used has to be left out. Numbers may be numpy scalars; they are stored as
    plain Python numbers.

    Raises:
        SpectralError: If a value lies outside the range given above, or belongs to an affinity that is not used.
    """

    pathway: Pathway = "what"
    affinity: Affinity | None = None
    heads: Heads = "merged"
    num_eigenvectors: int = 16
    layers: tuple[int, ...] | None = None
    temperature: float | None = None
    num_neighbors: int | None = None
    threshold: float | None = None
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
        keep_ints(self, "num_eigenvectors")
        object.__setattr__(self, "seed", require_seed(self.seed))
        for name, (affinity, default) in AFFINITY_PARAMETERS.items():
            self._resolve_parameter(name, affinity, default)
        object.__setattr__(self, "layer_weights", as_weighting(self.layer_weights))
        if self.layers is not None:
            object.__setattr__(self, "layers", _as_layer_indices(self.layers))

    def _resolve_parameter(self, name: str, affinity: Affinity, default: int | float | None) -> None:
        """Check a parameter of the affinity used, or give it its default; refuse one of another affinity."""
        value = getattr(self, name)
        if self.affinity != affinity:
            if value is not None:
                raise SpectralError(
                    name,
                    expected=f"none beside affinity={self.affinity!r}: it belongs to {affinity!r}",
                    got=repr(value),
                    fix=f"Leave it out, or choose affinity={affinity!r}",
                )
            return
        if value is None:
            value = default
        elif name == "num_neighbors":
            value = require_positive_int(name, value)
        elif name == "temperature":
            value = require_number(name, value, _LEAST_TEMPERATURE, _MOST_TEMPERATURE)
        else:
            value = require_number(name, value, 0, 1)
        object.__setattr__(self, name, value)

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
        # Version 0.1 wrote the defaults of `knn` beside every affinity.
        unused = {name: one for name, (owner, one) in AFFINITY_PARAMETERS.items() if owner != values["affinity"]}
        return cls(**values | {name: None for name, default in unused.items() if values[name] == default})


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


def require_positive_int(argument: str, value: object) -> int:
    """Refuse anything but an integer of at least 1, be it Python's or numpy's.

    Args:
        argument: Name to show in the message.
        value: The value to check.

    Returns:
        The same number as a plain `int`.

    Raises:
        SpectralError: If `value` is not an integer of at least 1.
    """
    return require_int(argument, value, 1)


def keep_ints(owner: object, *names: str, least: int = 1) -> None:
    """Check fields of a frozen dataclass for integers, be they Python's or numpy's, and keep them as plain `int`.

    Args:
        owner: The object; its fields are overwritten.
        names: Of the fields.
        least: Smallest value allowed.

    Raises:
        SpectralError: If a field is not an integer of at least `least`.
    """
    for name in names:
        object.__setattr__(owner, name, require_int(name, getattr(owner, name), least))


def keep_numbers(owner: object, **ranges: tuple[float, float]) -> None:
    """Check fields of a frozen dataclass by `require_number`, and keep them as plain `float`.

    Args:
        owner: The object; its fields are overwritten.
        ranges: Lowest and highest value of each field, by name.

    Raises:
        SpectralError: If a field is out of range.
    """
    for name, (least, most) in ranges.items():
        object.__setattr__(owner, name, require_number(name, getattr(owner, name), least, most))


def require_seed(seed: object) -> int:
    """Refuse a seed that some generator would not take.

    Args:
        seed: The value to check.

    Returns:
        The same number as a plain `int`.

    Raises:
        SpectralError: If `seed` is not an integer from 0 to 2**32 - 1.
    """
    if not is_int(seed) or not 0 <= seed <= _MOST_SEED:
        raise SpectralError(
            "seed", expected="an integer from 0 to 2**32 - 1", got=repr(seed), fix="Leave it out for the default"
        )
    return int(seed)


def require_number(argument: str, value: object, least: float, most: float, fix: str = "Leave it out") -> float:
    """Refuse anything but a number of a range, be it Python's or numpy's.

    Args:
        argument: Name to show in the message.
        value: The value to check.
        least: Lower end of the range; it belongs to it.
        most: Upper end of the range; it belongs to it.
        fix: The next step, for the message.

    Returns:
        The same number as a plain `float`.

    Raises:
        SpectralError: If `value` is no such number.
    """
    if not is_number(value) or not least <= value <= most:
        span = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
        raise SpectralError(argument, expected=f"a number {span}", got=repr(value), fix=fix)
    return float(value)


def require_same(
    argument: str,
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any],
    what: str = "",
    fix: str = "Use the settings and the backbone it was started with, or start anew",
) -> None:
    """Refuse settings that differ.

    Args:
        argument: Name to show in the message.
        mine: Settings that are expected, by name.
        theirs: Settings that were given, by name.
        what: What was expected, before the names and values.
        fix: What to do about it.

    Raises:
        SpectralError: If any differs; all that differ are named.
    """
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differing:
        expected, got = (", ".join(f"{name}={one.get(name)!r}" for name in differing) for one in (mine, theirs))
        raise SpectralError(argument, expected=what + expected, got=got, fix=fix)


def require_int(argument: str, value: object, least: int) -> int:
    """Refuse anything but an integer of at least some value, be it Python's or numpy's.

    Args:
        argument: Name to show in the message.
        value: The value to check.
        least: The smallest allowed.

    Returns:
        The same number as a plain `int`.

    Raises:
        SpectralError: If `value` is no such integer.
    """
    if not is_int(value) or value < least:
        raise SpectralError(argument, expected=f"an integer of at least {least}", got=repr(value), fix="Give a count")
    return int(value)


def _require_one_of(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        names = ", ".join(repr(name) for name in allowed)
        raise SpectralError(argument, expected=f"one of {names}", got=repr(value), fix="Choose one of these names")


def _as_layer_indices(layers: Any) -> tuple[int, ...]:
    try:
        indices = tuple(layers)
    except TypeError:
        indices = ()
    if not indices or not all(map(is_int, indices)):
        raise SpectralError(
            "layers", expected="a non-empty sequence of integers", got=repr(layers), fix="Give e.g. layers=[8, 9, 10]"
        )
    return tuple(map(int, indices))
