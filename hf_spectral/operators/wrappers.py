"""Operators that wrap another one: normalized by its degrees, or resampled to a finer grid."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.operators.base import AffinityOperator, Degree, Matrix, Vectors


@final
class NormalizedOperator(AffinityOperator):
    """The normalized affinity D^-1/2 W D^-1/2; a node without neighbors has a row of zeros.

    Args:
        affinity: W, with entries of at least 0.
    """

    def __init__(self, affinity: AffinityOperator) -> None:
        super().__init__(affinity.num_nodes, affinity.device)
        self.affinity = affinity
        self.inverse_root = inverse_root_degree(affinity.degree())

    def matmul(self, vectors: Vectors) -> Vectors:
        """Scale, multiply, scale."""
        scale = self.inverse_root[:, None]
        return scale * self.affinity.matmul(scale * vectors)

    def to_dense(self) -> Matrix:
        """Scale rows and columns of W."""
        return self.inverse_root[:, None] * self.affinity.to_dense() * self.inverse_root


@final
class ResampledOperator(AffinityOperator):
    """P^T S P: an operator on a coarse map, applied to vectors on a finer map through area pooling P.

    Args:
        coarse: S, on height x width nodes.
        pool_rows: Pooling matrix of the rows.
        pool_columns: Pooling matrix of the columns.
    """

    def __init__(
        self,
        coarse: AffinityOperator,
        pool_rows: Float[Tensor, "height fine_height"],
        pool_columns: Float[Tensor, "width fine_width"],
    ) -> None:
        super().__init__(pool_rows.shape[1] * pool_columns.shape[1], coarse.device)
        self.coarse = coarse
        self.pool_rows = pool_rows
        self.pool_columns = pool_columns

    def matmul(self, vectors: Float[Tensor, "fine vectors"]) -> Float[Tensor, "fine vectors"]:
        """Pool to the coarse map, multiply there, and apply the transpose of the pooling."""
        pooled = self._along_axes(vectors, self.pool_rows, self.pool_columns)
        return self._along_axes(self.coarse.matmul(pooled), self.pool_rows.T, self.pool_columns.T)

    def to_dense(self) -> Float[Tensor, "fine fine"]:
        """Form P as the Kronecker product of its two factors."""
        pooling = torch.kron(self.pool_rows, self.pool_columns)
        return pooling.T @ self.coarse.to_dense() @ pooling

    @staticmethod
    def _along_axes(vectors: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        # One axis after the other: both at once would form their Kronecker product, as large as a dense matrix.
        along_rows = rows @ vectors.reshape(rows.shape[1], -1)
        return (columns @ along_rows.view(rows.shape[0], columns.shape[1], -1)).view(-1, vectors.shape[1])


def inverse_root_degree(degree: Degree) -> Degree:
    """Return d^-1/2, and 0 for a node without neighbors.

    Args:
        degree: Row sums of an affinity, at least 0 up to rounding.

    Returns:
        Finite numbers of at least 0.
    """
    return torch.where(degree > 0, degree.clamp_min(torch.finfo(degree.dtype).tiny).rsqrt(), torch.zeros_like(degree))
