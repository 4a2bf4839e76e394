"""The settings of a problem: everything that is needed to reproduce it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args

from hf_spectral.affinities import PARAMETERS, Affinity, AffinityName, as_affinity
from hf_spectral.checks import is_int, keep_ints, require_fields, require_known, require_one_of, require_seed
from hf_spectral.errors import SpectralError
from hf_spectral.layer_weights import Weighting, as_weighting
from hf_spectral.records import PATHWAYS, Heads, Pathway

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True)
class SpectralConfig:
    """Settings of one joint spectral problem.

    Args:
        pathway: `"where"` compares queries with keys (spatial layout), `"what"` compares values with values (identity).
        affinity: How two tokens are compared: `Attention()` (for `where` only), `Exponential()`, `Cosine()` or
            `NearestNeighbors()`, with parameters of their own, or for their defaults the name `"attention"`,
            `"exponential"`, `"cosine"` or `"knn"`. None takes the pathway's default, `Attention()` for `where` and
            `Exponential()` for `what`. The object is kept.
        heads: `"merged"` builds one affinity per layer (the mean over heads of the attention, or the cosine over the
            full width); `"separate"` builds one per head and averages the normalized affinities.
        num_eigenvectors: Eigenvectors to return, the trivial one at index 0 among them; at least 1.
        layers: Indices of the layers to use, in call order from 0, negative ones counted from the last attention layer
            of the backbone; None means all.
        seed: Seed of every random start, from 0 to 2**32 - 1.
        layer_weights: `"equal"`; `"auto"`, found without labels (see `problem` for an image, `fit` for a dataset);
            numbers by layer index, where a layer left out takes no part; or one number per layer that takes part (named
            by `layers` and able to serve the pathway), in ascending order of its index, as many as there are such
            layers. Numbers are at least 0, differ by a factor of a million at most, and are scaled to sum to 1 where
            they are used. All timesteps of a layer share its weight.

    Numbers may be numpy scalars; they are stored as plain Python numbers.

    Example:
        >>> config = SpectralConfig("what", NearestNeighbors(num_neighbors=20), layers=(8, 9, 10, 11))
        >>> result = solve(build_problem(capture, config))

    Raises:
        SpectralError: If a value lies outside the range given above, or the affinity cannot serve the pathway.
    """

    pathway: Pathway = "what"
    affinity: Affinity | AffinityName | None = None
    heads: Heads = "merged"
    num_eigenvectors: int = 16
    layers: tuple[int, ...] | None = None
    seed: int = 0
    layer_weights: Weighting = "equal"

    def __new__(cls, *args: Any, **kwargs: Any) -> SpectralConfig:
        """Check the names before the generated constructor takes them."""
        require_known(kwargs, (field.name for field in dataclasses.fields(cls)))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Resolve the default affinity and check all values."""
        require_one_of("pathway", self.pathway, PATHWAYS)
        object.__setattr__(self, "affinity", as_affinity(self.affinity, self.pathway))
        require_one_of("heads", self.heads, get_args(Heads))
        keep_ints(self, "num_eigenvectors")
        object.__setattr__(self, "seed", require_seed(self.seed))
        object.__setattr__(self, "layer_weights", as_weighting(self.layer_weights))
        if self.layers is not None:
            object.__setattr__(self, "layers", _as_layer_indices(self.layers))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        assert isinstance(self.affinity, Affinity)
        return dataclasses.asdict(self) | {"affinity": self.affinity.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SpectralConfig:
        """Build the settings from the values that `to_dict` returned.

        Args:
            values: Every field's name with its value; a list stands for the tuple of layers.

        Returns:
            The validated settings.

        Raises:
            SpectralError: If a name is unknown or missing, or a value is out of range.
        """
        values = dict(values)
        if isinstance(values.get("affinity"), str):
            # Version 0.1 wrote the parameters of all affinities beside the name of the one used, None or a default.
            parameters = {name: values.pop(name, None) for name in PARAMETERS}
            own = {name: one for name, one in parameters.items() if PARAMETERS[name].name == values["affinity"]}
            values["affinity"] = {"name": values["affinity"], **own}
        require_fields("config", cls, values)
        return cls(**values)


def defaults_hold(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let the defaults of a pipeline stand in for the arguments that a call leaves out.

    An argument of the call comes first, None included, then the default of the pipeline, then that of the signature.

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
