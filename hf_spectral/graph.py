"""From attention records to one joint spectral problem: an affinity a layer, normalized, summed on a common grid.

Zhang, Yunis and Maire (CVPR 2024), with the generalized form for layers of different resolution: find x with

    A x = (1 - lambda) B x,    A = mean_l P_l^T S_l P_l,    B = mean_l P_l^T P_l,

where S_l is the normalized affinity of layer l and P_l pools the common grid to that layer's grid. Where all layers
share one grid, B is the identity and A the average of the normalized affinities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from hf_spectral.affinities import affinity_operators
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, area_pooling, finest
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
    symmetrize_,
)
from hf_spectral.records import AttentionRecord, SkippedLayer, selected

# Up to here the sum of a grid's affinities is held as one matrix (16,384 nodes in float32); above, layers stay apart
# and their rows are formed anew at every multiplication.
MAX_DENSE_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class JointProblem:
    """Find the eigenvectors of A x = (1 - lambda) B x with the smallest lambda.

    Args:
        affinity: A.
        mass: B, positive definite.
        grid: The common grid that the nodes lie on.
        config: Settings that the problem was built with.
        layers: Names of the layers that entered, in call order.
        skipped: Layers that did not enter, with reasons.
    """

    affinity: AffinityOperator
    mass: AffinityOperator
    grid: TokenGrid
    config: SpectralConfig
    layers: tuple[str, ...]
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
        config: Settings; `config.layers` selects among the records. None takes the defaults.

    Returns:
        The problem over all selected layers.

    Raises:
        SpectralError: If a record holds several images, or if no layer can serve the pathway.
    """
    config = config or SpectralConfig()
    builder = ProblemBuilder(config)
    for record in selected(records, config.layers):
        builder.add(record)
    return builder.build()


class ProblemBuilder:
    """Adds up layers as they arrive, so that memory holds one layer and one sum, whatever the number of layers.

    Args:
        config: Settings; `config.layers` is not looked at here, give only the layers wanted.
        max_dense_bytes: Largest matrix to hold; above it the layers are kept as operators.
    """

    def __init__(self, config: SpectralConfig, max_dense_bytes: int = MAX_DENSE_BYTES) -> None:
        self.config = config
        self.max_dense_bytes = max_dense_bytes
        self._sums: dict[tuple[int, int], _GridSum] = {}
        self._layers: list[str] = []
        self._skipped: list[SkippedLayer] = []

    def add(self, record: AttentionRecord) -> None:
        """Add one layer of one image.

        Args:
            record: The layer; its tensors are not kept unless the problem is too large for a dense sum.

        Raises:
            SpectralError: If the record holds more than one image.
        """
        if record.num_images != 1:
            raise SpectralError(
                "record", expected="one image", got=f"{record.num_images} images", fix="Use record.image(position)"
            )
        reason = record.refusal(self.config.pathway)
        if reason is not None:
            self._skipped.append(SkippedLayer(record.name, reason))
            return
        shape = (record.grid.height, record.grid.width)
        if shape not in self._sums:
            self._sums[shape] = _GridSum(TokenGrid(*shape), self.max_dense_bytes)
        self._sums[shape].add_layer(affinity_operators(record, self.config))
        self._layers.append(record.name)

    def build(self) -> JointProblem:
        """Return the problem over all layers added; the builder is spent afterwards.

        Raises:
            SpectralError: If no layer was added.
        """
        if not self._layers:
            reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in self._skipped) or "no layer was given"
            raise SpectralError(
                "pathway",
                expected="a backbone with at least one layer that can serve it",
                got=f"{self.config.pathway!r} ({reasons})",
                fix="Try pathway='what'" if self.config.pathway == "where" else "Check `layers`",
            )
        common, affinity, mass = _on_common_grid(list(self._sums.values()), 1 / len(self._layers))
        return JointProblem(affinity, mass, common, self.config, tuple(self._layers), tuple(self._skipped))


class _GridSum:
    """The sum of the normalized affinities of all layers that share one grid."""

    def __init__(self, grid: TokenGrid, max_dense_bytes: int) -> None:
        self.grid = grid
        self.num_layers = 0
        self._fits_dense = 4 * grid.num_nodes**2 <= max_dense_bytes
        self._dense: Tensor | None = None
        self._scratch: Tensor | None = None
        self._terms: list[AffinityOperator] = []
        self._weights: list[float] = []

    def add_layer(self, affinities: list[AffinityOperator]) -> None:
        """Add one layer: the mean of its normalized affinities."""
        self.num_layers += 1
        for affinity in affinities:
            self._add(affinity, 1 / len(affinities))

    def finish(self, scale: float) -> AffinityOperator:
        """Return the sum times a number; the sum is spent."""
        terms, weights = self._terms, [scale * weight for weight in self._weights]
        if self._dense is not None:
            terms, weights = [*terms, DenseOperator(symmetrize_(self._dense.mul_(scale)))], [*weights, 1.0]
        self._dense = self._scratch = None
        return terms[0] if weights == [1.0] else SumOperator(terms, weights)

    def _add(self, affinity: AffinityOperator, weight: float) -> None:
        if isinstance(affinity, KernelOperator) and self._fits_dense:
            self._add_kernel(affinity, weight)
        elif isinstance(affinity, GramOperator):
            # Scaling the factor normalizes and keeps the rank r: a product then costs 2 n r instead of n^2.
            normalized = affinity.scaled(inverse_root_degree(affinity.degree()))
            if self._fits_dense and 4 * affinity.rank >= affinity.num_nodes:
                matrix = normalized.to_dense()
                self._dense = matrix * weight if self._dense is None else self._dense.add_(matrix, alpha=weight)
            else:
                self._keep(normalized, weight)
        else:
            self._keep(NormalizedOperator(affinity), weight)

    def _add_kernel(self, affinity: KernelOperator, weight: float) -> None:
        """Form the kernel once, in memory kept between layers, then normalize it on its way into the sum."""
        if self._scratch is None:
            self._scratch = torch.empty(affinity.num_nodes, affinity.num_nodes, device=affinity.device)
        if self._dense is None:
            self._dense = torch.zeros_like(self._scratch)
        degree = torch.zeros(affinity.num_nodes, device=affinity.device)
        for block, columns, rows in affinity.sweep(self._scratch):
            degree[block] += rows.sum(1) / 2
            degree[columns] += rows.sum(0) / 2
        scale = inverse_root_degree(degree)
        for block in affinity.blocks():
            columns = affinity.columns(block)
            scaled = self._scratch[block, columns] * scale[columns]
            self._dense[block, columns].addcmul_(scaled, scale[block, None], value=weight)

    def _keep(self, operator: AffinityOperator, weight: float) -> None:
        self._terms.append(operator)
        self._weights.append(weight)


def _on_common_grid(parts: list[_GridSum], weight: float) -> tuple[TokenGrid, AffinityOperator, AffinityOperator]:
    """Sum the grids' affinities and masses, each pooled from the common grid."""
    common = finest([part.grid for part in parts])
    if len(parts) == 1:
        affinity = parts[0].finish(weight)
        return common, affinity, IdentityOperator(common.num_nodes, affinity.device)
    affinities: list[AffinityOperator] = []
    masses: list[AffinityOperator] = []
    for part in parts:
        operator = part.finish(weight)
        mass = part.num_layers * weight * IdentityOperator(part.grid.num_nodes, operator.device)
        if part.grid.same_map(common):
            affinities.append(operator)
            masses.append(mass)
            continue
        pools = [
            area_pooling(fine, coarse).to(operator.device, torch.float32)
            for fine, coarse in ((common.height, part.grid.height), (common.width, part.grid.width))
        ]
        affinities.append(ResampledOperator(operator, *pools))
        masses.append(ResampledOperator(mass, *pools))
    return common, SumOperator(affinities), SumOperator(masses)
