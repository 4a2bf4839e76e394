"""From attention records to one joint spectral problem: an affinity per layer, normalized, summed on a common grid.

Zhang, Yunis and Maire (CVPR 2024), with the generalized form for layers of different resolution: find x with

    A x = (1 - lambda) B x,    A = sum_l w_l P_l^T S_l P_l,    B = sum_l w_l P_l^T P_l,

where S_l is the normalized affinity of layer l, P_l pools the common grid to that layer's grid, and the weights w_l,
equal unless given, are together 1. Where all layers share one grid, B is the identity and A the average of the
normalized affinities.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from hf_spectral.affinities import Affinity
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, finest, pools
from hf_spectral.layer_choice import LayerChoice, counted
from hf_spectral.operators import (
    AffinityOperator,
    DenseOperator,
    GramOperator,
    IdentityOperator,
    KernelOperator,
    NormalizedOperator,
    ResampledOperator,
    SumOperator,
    inverse_root_degree,
    symmetric_product,
    symmetrize_,
)
from hf_spectral.records import AttentionRecord, SkippedLayer
from hf_spectral.torch_state import plain_torch

# Up to here the sum of a grid's affinities is held as one matrix (16,384 nodes in float32); above, layers stay apart
# and their rows are formed anew at every multiplication.
MAX_DENSE_BYTES = 1 << 30
# A weight that a layer's own affinity gives stays on its device: the host waits for all of them once, at the end.
Weight = float | Float[Tensor, ""]
# Random vectors that estimate the norm of a normalized affinity, which automatic layer weights follow.
_PROBES = 8


@dataclasses.dataclass(frozen=True)
class JointProblem:
    """Find the eigenvectors of A x = (1 - lambda) B x with the smallest lambda.

    Args:
        affinity: A.
        mass: B, positive definite.
        grid: The common grid that the nodes lie on.
        config: Settings that the problem was built with.
        layers: Names of the layers that entered, in call order.
        layer_weights: Weight of each of them, together 1.
        skipped: Layers that did not enter, with reasons.
    """

    affinity: AffinityOperator
    mass: AffinityOperator
    grid: TokenGrid
    config: SpectralConfig
    layers: tuple[str, ...]
    layer_weights: tuple[float, ...]
    skipped: tuple[SkippedLayer, ...] = ()

    @property
    def num_nodes(self) -> int:
        """Nodes of the common grid."""
        return self.grid.num_nodes

    @property
    def mass_is_identity(self) -> bool:
        """True if all layers share one grid: the problem is then an ordinary symmetric eigenproblem."""
        return isinstance(self.mass, IdentityOperator)


def build_problem(records: Iterable[AttentionRecord], config: SpectralConfig | None = None) -> JointProblem:
    """Build the joint problem of one image.

    Args:
        records: The layers of one image, e.g. a `Capture`.
        config: Settings, which also tell the records that take part (`layer_choice.LayerChoice`); None takes the
            defaults.

    Returns:
        The problem over all layers that take part.

    Raises:
        SpectralError: If a record holds several images, no layer can serve the pathway, or layer weights do not fit.
    """
    builder = ProblemBuilder(config or SpectralConfig())
    for record in counted(records):
        builder.add(record)
    return builder.build()


class ProblemBuilder:
    """Adds up layers as they arrive, so that memory holds one layer and one sum, whatever the number of layers.

    Args:
        config: Settings, which also tell the records that take part (`layer_choice.LayerChoice`).
        max_dense_bytes: Largest matrix to hold; above it the layers are kept as operators.
    """

    def __init__(self, config: SpectralConfig, max_dense_bytes: int = MAX_DENSE_BYTES) -> None:
        self.config = config
        self.max_dense_bytes = max_dense_bytes
        self._sums: dict[tuple[int, int], _GridSum] = {}
        self._choice = LayerChoice(config)
        self._layers: list[str] = []
        self._weights: list[Weight] = []

    @plain_torch()
    def add(self, record: AttentionRecord, weight: float | None = None) -> None:
        """Add one layer of one image.

        Args:
            record: The layer, the next in call order; its tensors are not kept unless the problem is too large for a
                dense sum.
            weight: Its weight relative to the others; None takes what `config.layer_weights` says.

        Raises:
            SpectralError: If the record holds more than one image, or there is no such layer as `config.layers` names.
        """
        if record.num_images != 1:
            raise SpectralError(
                "record", expected="one image", got=f"{record.num_images} images", fix="Use record.image(position)"
            )
        own = self._choice.weight(record)
        if own == 0:
            return
        if weight is None and self.config.layer_weights != "auto":
            weight = own
        shape = record.grid.shape
        if shape not in self._sums:
            self._sums[shape] = _GridSum(TokenGrid(*shape), self.max_dense_bytes)
        self._weights.append(self._sums[shape].add_layer(affinity_operators(record, self.config), weight))
        self._layers.append(record.name)

    @plain_torch()
    def build(self) -> JointProblem:
        """Return the problem over all layers added; the builder is spent afterwards.

        Raises:
            SpectralError: If no layer was added that can serve the pathway, or layer weights do not fit the layers.
        """
        self._choice.check()
        weights = _numbers(self._weights)
        total = sum(weights)
        common, affinity, mass = _on_common_grid(list(self._sums.values()), 1 / total)
        shares = tuple(weight / total for weight in weights)
        return JointProblem(
            affinity, mass, common, self.config, tuple(self._layers), shares, tuple(self._choice.skipped)
        )


class _GridSum:
    """The sum of the normalized affinities of all layers that share one grid."""

    def __init__(self, grid: TokenGrid, max_dense_bytes: int) -> None:
        self.grid = grid
        self.weight: Weight = 0.0
        self._fits_dense = 4 * grid.num_nodes**2 <= max_dense_bytes
        self._dense: Tensor | None = None
        self._scratch: Tensor | None = None
        self._terms: list[AffinityOperator] = []
        self._weights: list[Weight] = []

    def add_layer(self, affinities: list[AffinityOperator], weight: float | None) -> Weight:
        """Add one layer, its weight times the mean of its normalized affinities.

        Args:
            affinities: Of the layer, one or one per head.
            weight: None weighs each affinity by itself, see `_automatic`.

        Returns:
            The weight.
        """
        parts = [self._add(affinity, 1 / len(affinities), weight) for affinity in affinities]
        used = sum(parts) if weight is None else weight
        self.weight += used
        return used

    def finish(self, scale: float) -> AffinityOperator:
        """Return the sum times a number; the sum is spent."""
        terms, weights = self._terms, [scale * weight for weight in _numbers(self._weights)]
        if self._dense is not None:
            terms, weights = [*terms, DenseOperator(symmetrize_(self._dense.mul_(scale)))], [*weights, 1.0]
        self._dense = self._scratch = None
        return terms[0] if weights == [1.0] else SumOperator(terms, weights)

    def _add(self, affinity: AffinityOperator, share: float, weight: float | None) -> Weight:
        if isinstance(affinity, KernelOperator) and self._fits_dense:
            return self._add_kernel(affinity, share, weight)
        operator, used = normalized(affinity, share, weight)
        if isinstance(operator, GramOperator) and self._fits_dense and 4 * operator.rank >= operator.num_nodes:
            matrix = operator.to_dense().mul_(used)
            self._dense = matrix if self._dense is None else self._dense.add_(matrix)
        else:
            self._terms.append(operator)
            self._weights.append(used)
        return used

    def _add_kernel(self, affinity: KernelOperator, share: float, weight: float | None) -> Weight:
        """Form the kernel once, in memory kept between layers, then normalize it on its way into the sum."""
        size, device = affinity.num_nodes, affinity.device
        if self._scratch is None:
            self._scratch = torch.empty(size, size, dtype=torch.float32, device=device)
        if self._dense is None:
            self._dense = torch.zeros_like(self._scratch)
        kernel, degree = self._scratch, torch.zeros(size, dtype=torch.float32, device=device)
        for block, columns, rows in affinity.sweep(kernel):
            degree[block] += rows.sum(1) / 2
            degree[columns] += rows.sum(0) / 2
        scale = inverse_root_degree(degree)

        def multiply(vectors: Tensor) -> Tensor:
            return scale[:, None] * symmetric_product(affinity.parts(kernel), scale[:, None] * vectors)

        used = share * (_automatic(multiply, scale) if weight is None else weight)
        left = used * scale
        for block, columns, rows in affinity.parts(kernel):
            self._dense[block, columns].addcmul_(rows * scale[columns], left[block, None])
        return used


def affinity_operators(record: AttentionRecord, config: SpectralConfig) -> list[AffinityOperator]:
    """Return the affinities W of one layer of one image.

    Args:
        record: One layer of one image.
        config: Pathway, affinity and heads.

    Returns:
        One with heads merged, one per head with heads separate.
    """
    assert isinstance(config.affinity, Affinity)
    return config.affinity.operators(record, config.pathway, config.heads)


def normalized(affinity: AffinityOperator, share: float, weight: float | None) -> tuple[AffinityOperator, Weight]:
    """Return the normalized affinity of a layer or a head, and its weight in the joint problem.

    Args:
        affinity: W.
        share: One over the number of affinities of its layer.
        weight: Of the layer; None weighs the affinity by itself, see `_automatic`.

    Returns:
        S, and its weight.
    """
    operator: AffinityOperator
    if isinstance(affinity, GramOperator):
        # Scaling the factor normalizes and keeps the rank r: a product then costs 2 n r instead of n^2.
        scale = inverse_root_degree(affinity.degree())
        operator = affinity.scaled(scale)
    else:
        operator = NormalizedOperator(affinity)
        scale = operator.inverse_root
    return operator, share * (_automatic(operator.matmul, scale) if weight is None else weight)


def _automatic(multiply: Callable[[Tensor], Tensor], scale: Tensor) -> Float[Tensor, ""]:
    """Return the automatic weight of a normalized affinity S: one over the square root of its Frobenius norm.

    The squared norm, the sum of the squared eigenvalues, is about the number of groups of tokens that a layer tells
    apart. Some layers tell apart hundreds, by texture and color, all with eigenvalues near 1, and with equal weights
    fill the leading eigenvectors of the joint problem. Stronger powers gain more at 700 tokens and lose at 3,000: see
    `tests/benchmarks/layer_weights.py`. The norm is estimated from a few products (Hutchinson 1989), the largest
    eigenvalue, 1, taken exactly.
    """
    probes = _signs(len(scale), scale.device)
    trivial = normalize(inverse_root_degree(scale.square()), dim=0)
    probes = probes - trivial[:, None] * (trivial @ probes)
    return (1 + multiply(probes).square().sum() / _PROBES) ** -0.25


@functools.lru_cache(maxsize=4)
def _signs(num_nodes: int, device: torch.device) -> Float[Tensor, "nodes probes"]:
    """Return random signs, drawn on the CPU so that every device sees the same ones; all layers share them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, (num_nodes, _PROBES), generator=generator).to(device, torch.float32) * 2 - 1


def _numbers(weights: Sequence[Weight]) -> list[float]:
    """Return weights as numbers of the host, those of a device by one transfer."""
    on_device = [weight for weight in weights if isinstance(weight, Tensor)]
    return torch.stack(on_device).cpu().tolist() if on_device else [float(weight) for weight in weights]


def _on_common_grid(parts: list[_GridSum], scale: float) -> tuple[TokenGrid, AffinityOperator, AffinityOperator]:
    """Sum the grids' affinities and masses, each pooled from the common grid."""
    common = finest([part.grid for part in parts])
    if len(parts) == 1:
        affinity = parts[0].finish(scale)
        return common, affinity, IdentityOperator(common.num_nodes, affinity.device)
    affinities: list[AffinityOperator] = []
    masses: list[AffinityOperator] = []
    for part in parts:
        operator = part.finish(scale)
        mass = float(part.weight) * scale * IdentityOperator(part.grid.num_nodes, operator.device)
        if part.grid.shape == common.shape:
            affinities.append(operator)
            masses.append(mass)
            continue
        axes = pools(common, part.grid, operator.device)
        affinities.append(ResampledOperator(operator, *axes))
        masses.append(ResampledOperator(mass, *axes))
    return common, SumOperator(affinities), SumOperator(masses)
