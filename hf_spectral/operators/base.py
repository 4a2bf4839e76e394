"""The interface of a symmetric linear map, defined by its products with vectors; weighted sums of such maps."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

Vectors = Float[Tensor, "nodes vectors"]
Matrix = Float[Tensor, "nodes nodes"]
Degree = Float[Tensor, " nodes"]


class AffinityOperator(abc.ABC):
    """A real symmetric matrix, defined by its products with vectors.

    Args:
        num_nodes: Rows (and columns) of the matrix.
        device: Device of the operator; vectors must be on the same device.
    """

    def __init__(self, num_nodes: int, device: torch.device) -> None:
        self.num_nodes = num_nodes
        self.device = device

    @abc.abstractmethod
    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply the matrix with a block of vectors.

        Args:
            vectors: One vector per column.

        Returns:
            The products, one per column.
        """

    @abc.abstractmethod
    def to_dense(self) -> Matrix:
        """Form the matrix; memory grows with the square of `num_nodes`."""

    def degree(self) -> Degree:
        """Return the row sums d = W 1."""
        ones = torch.ones(self.num_nodes, 1, dtype=torch.float32, device=self.device)
        return self.matmul(ones)[:, 0]

    def __add__(self, other: AffinityOperator) -> AffinityOperator:
        """Return the sum of both operators."""
        return SumOperator([self, other])

    def __mul__(self, weight: float) -> AffinityOperator:
        """Return the operator times a number."""
        return SumOperator([self], [weight])

    __rmul__ = __mul__


@final
class SumOperator(AffinityOperator):
    """A weighted sum of operators on the same nodes.

    Args:
        terms: The operators, at least one.
        weights: One factor per term; None means 1 for each.
    """

    def __init__(self, terms: Sequence[AffinityOperator], weights: Sequence[float] | None = None) -> None:
        self.terms = list(terms)
        super().__init__(self.terms[0].num_nodes, self.terms[0].device)
        self.weights = [1.0] * len(self.terms) if weights is None else list(weights)

    def matmul(self, vectors: Vectors) -> Vectors:
        """Add up the products."""
        product = torch.zeros_like(vectors)
        for term, weight in zip(self.terms, self.weights, strict=True):
            product.add_(term.matmul(vectors), alpha=weight)
        return product

    def to_dense(self) -> Matrix:
        """Add up the matrices."""
        total = torch.zeros(self.num_nodes, self.num_nodes, dtype=torch.float32, device=self.device)
        for term, weight in zip(self.terms, self.weights, strict=True):
            total.add_(term.to_dense(), alpha=weight)
        return total
