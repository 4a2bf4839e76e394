"""How two tokens of a layer are compared: frozen objects with their own parameters, which make the layer's affinities.

A name is the short form of an object: `"knn"` stands for `NearestNeighbors()`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from hf_spectral.checks import keep_ints, keep_numbers, require_fields, require_one_of
from hf_spectral.errors import SpectralError
from hf_spectral.operators import (
    AffinityOperator,
    AttentionOperator,
    ExponentialOperator,
    SparseOperator,
    cosine_gram,
    cosine_spread,
    nearest_neighbors,
    neighbor_graph,
)
from hf_spectral.records import PATHWAYS, AttentionRecord, Heads, Pathway, unit_tokens

AffinityName = Literal["attention", "exponential", "cosine", "knn"]

# A cosine in float32 is known to about 1e-7: at a lower temperature exp(cos / tau) would be rounding noise, and at a
# higher one than the inverse every affinity would be 1.
_TEMPERATURES = (1e-4, 1e4)
# Temperature of the exponential affinity as a share of the spread of a layer's cosines. A fixed temperature would make
# one layer's affinity nearly flat and another's a few sharp peaks: BSDS500 covering of all layers together rose by 0.03
# with a relative one, on images it was not chosen on.
_RELATIVE_TEMPERATURE = 0.35
# Below it, tokens that point apart would have an affinity that float32 cannot hold.
_LEAST_SPREAD = 0.08


@dataclasses.dataclass(frozen=True)
class Affinity(abc.ABC):
    """How two tokens of one layer are compared; a leaf is a frozen object, its fields are its parameters.

    Attributes:
        name: Short form of the object with its default parameters.
        pathways: Pathways that it can serve.
    """

    name: ClassVar[str]
    pathways: ClassVar[tuple[Pathway, ...]] = PATHWAYS

    @abc.abstractmethod
    def operators(self, record: AttentionRecord, pathway: Pathway, heads: Heads) -> list[AffinityOperator]:
        """Return the affinities W of one layer of one image.

        Args:
            record: One layer of one image.
            pathway: `"where"` compares queries with keys, `"what"` values with values.
            heads: `"merged"` or `"separate"`.

        Returns:
            Symmetric operators with entries of at least 0: one with heads merged, one per head with heads separate.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the parameters as JSON-ready values."""
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Attention(Affinity):
    """The layer's own attention, made symmetric: W = (P + P^T) / 2 with P = softmax(scale Q K^T).

    With heads merged, P is the mean over heads. It compares queries with keys, so that it serves the `where` pathway
    only, whose default it is. Used by Zhang, Yunis and Maire (CVPR 2024, section 3).

    Example:
        >>> SpectralConfig("where", Attention()) == SpectralConfig("where")
        True
    """

    name: ClassVar[str] = "attention"
    pathways: ClassVar[tuple[Pathway, ...]] = ("where",)

    def operators(self, record: AttentionRecord, pathway: Pathway, heads: Heads) -> list[AffinityOperator]:
        """Return W, or one W per head: see `Affinity.operators`."""
        query, key = record.query[0].float(), record.key[0].float()
        groups = [slice(None)] if heads == "merged" else [slice(head, head + 1) for head in range(len(query))]
        return [AttentionOperator(query[group], key[group], record.scale) for group in groups]


@dataclasses.dataclass(frozen=True)
class Exponential(Affinity):
    """The exponential of the cosine: W_ij = exp((c_ij - 1) / temperature).

    On unit vectors this is the Gaussian similarity exp(-|a_i - a_j|^2 / (2 temperature)) of von Luxburg (2007, A
    tutorial on spectral clustering, section 2.2). On the `where` pathway c_ij is the mean of the cosine of query i with
    key j and that of query j with key i. The default of the `what` pathway.

    Args:
        temperature: From 1e-4 to 1e4. None takes 0.35 times the standard deviation of the layer's own cosines (at least
            0.08), so that every layer is equally selective.

    Raises:
        SpectralError: If the temperature is out of range.

    Example:
        >>> SpectralConfig("what", Exponential(temperature=0.1)).affinity
        Exponential(temperature=0.1)
    """

    name: ClassVar[str] = "exponential"
    temperature: float | None = None

    def __post_init__(self) -> None:
        """Refuse a temperature out of range."""
        if self.temperature is not None:
            keep_numbers(self, temperature=_TEMPERATURES)

    def operators(self, record: AttentionRecord, pathway: Pathway, heads: Heads) -> list[AffinityOperator]:
        """Return W, or one W per head: see `Affinity.operators`."""
        return [
            ExponentialOperator(
                left,
                right,
                self.temperature or _RELATIVE_TEMPERATURE * cosine_spread(left, right).clamp_min(_LEAST_SPREAD),
            )
            for left, right in _pairs(record, pathway, heads)
        ]


@dataclasses.dataclass(frozen=True)
class Cosine(Affinity):
    """The shifted cosine: W_ij = (1 + c_ij) / 2, with c as in `Exponential`.

    Its matrix has low rank, so that it adds up over a whole dataset: the affinity of `fit`.

    Example:
        >>> SpectralConfig("what", Cosine()) == SpectralConfig("what", "cosine")
        True
    """

    name: ClassVar[str] = "cosine"

    def operators(self, record: AttentionRecord, pathway: Pathway, heads: Heads) -> list[AffinityOperator]:
        """Return W, or one W per head: see `Affinity.operators`."""
        return [cosine_gram(left, right) for left, right in _pairs(record, pathway, heads)]


@dataclasses.dataclass(frozen=True)
class NearestNeighbors(Affinity):
    """The graph of nearest neighbors: W = (N + N^T) / 2, where N keeps of c (see `Exponential`) the neighbors only.

    N_ij = c_ij if j is among the `num_neighbors` other tokens most similar to i, and c_ij is above `threshold`; else 0.
    The graph of Zhang, Yunis and Maire for many images (CVPR 2024, section 3 and their public code).

    Args:
        num_neighbors: Neighbors that a token keeps at most, at least 1.
        threshold: Cosines at or below it are cut, from 0 to 1.

    Raises:
        SpectralError: If a parameter is out of range.

    Example:
        >>> SpectralConfig("what", NearestNeighbors(num_neighbors=20)).affinity
        NearestNeighbors(num_neighbors=20, threshold=0.1)
    """

    name: ClassVar[str] = "knn"
    num_neighbors: int = 50
    threshold: float = 0.1

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        keep_ints(self, "num_neighbors")
        keep_numbers(self, threshold=(0, 1))

    def operators(self, record: AttentionRecord, pathway: Pathway, heads: Heads) -> list[AffinityOperator]:
        """Return W, or one W per head: see `Affinity.operators`."""
        pairs = _pairs(record, pathway, heads)
        graphs = [nearest_neighbors(left, right, self.num_neighbors, self.threshold) for left, right in pairs]
        return [SparseOperator(neighbor_graph(edges, record.grid.num_nodes)) for edges in graphs]


#: The affinities by name.
AFFINITIES: dict[str, type[Affinity]] = {kind.name: kind for kind in (Attention, Exponential, Cosine, NearestNeighbors)}
#: The affinity that each parameter belongs to.
PARAMETERS = {field.name: kind for kind in AFFINITIES.values() for field in dataclasses.fields(kind)}


def as_affinity(given: Any, pathway: Pathway) -> Affinity:
    """Return the affinity that a caller asked for.

    Args:
        given: An affinity, its name, what `Affinity.to_dict` gave, or None for the pathway's default.
        pathway: The pathway that it is to serve.

    Returns:
        The affinity.

    Raises:
        SpectralError: If it is none of these, a parameter is unknown, missing or out of range, or it cannot serve the
            pathway.
    """
    if given is None:
        given = "attention" if pathway == "where" else "exponential"
    if not isinstance(given, Affinity):
        parameters = dict(given) if isinstance(given, Mapping) else {}
        name = parameters.pop("name", None) if isinstance(given, Mapping) else given
        require_one_of("affinity", name, tuple(AFFINITIES), "an affinity object such as Cosine()")
        if isinstance(given, Mapping):
            require_fields("affinity", AFFINITIES[name], parameters)
        given = AFFINITIES[name](**parameters)
    if pathway not in given.pathways:
        serving = ", ".join(repr(kind.name) for kind in AFFINITIES.values() if pathway in kind.pathways)
        raise SpectralError(
            "affinity",
            expected=f"one that serves the {pathway!r} pathway: {serving}",
            got=repr(given),
            fix="Leave it out for the default of the pathway, or choose another",
        )
    return given


def _pairs(record: AttentionRecord, pathway: Pathway, heads: Heads) -> list[tuple[Tensor, Tensor | None]]:
    """Return the unit vectors to compare; the second is None where the first is compared with itself."""
    left, *right = unit_tokens(record, pathway, heads)
    return list(zip(left, right[0] if right else [None] * len(left), strict=True))
