"""Operators that store their matrix: dense, sparse, low-rank, and the identity."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.operators.base import AffinityOperator, Degree, Matrix, Vectors


@final
class DenseOperator(AffinityOperator):
    """A dense matrix.

    Args:
        matrix: Symmetric matrix; symmetry is not checked.
    """

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix.shape[0], matrix.device)
        self.matrix = matrix

    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply from the left: equal by symmetry, and up to twice as fast with few vectors."""
        return (vectors.T @ self.matrix).T

    def to_dense(self) -> Matrix:
        """Return the matrix itself."""
        return self.matrix


@final
class IdentityOperator(AffinityOperator):
    """The identity.

    Args:
        num_nodes: Rows of the matrix.
        device: Device of the vectors.
    """

    def matmul(self, vectors: Vectors) -> Vectors:
        """Return the vectors."""
        return vectors

    def to_dense(self) -> Matrix:
        """Form the identity."""
        return torch.eye(self.num_nodes, dtype=torch.float32, device=self.device)


@final
class SparseOperator(AffinityOperator):
    """A matrix with few entries, such as a nearest-neighbor graph.

    Args:
        matrix: Sparse COO tensor, symmetric, coalesced.
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix.shape[0], matrix.device)
        self.matrix = matrix

    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply along the stored entries."""
        return torch.sparse.mm(self.matrix, vectors)

    def to_dense(self) -> Matrix:
        """Return the matrix with its zeros stored."""
        return self.matrix.to_dense()


@final
class GramOperator(AffinityOperator):
    """The low-rank matrix F J F^T, with J = diag(signs).

    Args:
        factor: F, one row per node.
        signs: Diagonal of J, +1 or -1 per column; None means all +1.
    """

    def __init__(self, factor: Float[Tensor, "nodes rank"], signs: Float[Tensor, " rank"] | None = None) -> None:
        super().__init__(factor.shape[0], factor.device)
        self.factor = factor
        self.signs = signs

    @property
    def rank(self) -> int:
        """Columns of the factor: an upper bound on the rank."""
        return self.factor.shape[1]

    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply by F^T, by J and by F."""
        projected = self.factor.T @ vectors
        return self.factor @ (projected if self.signs is None else self.signs[:, None] * projected)

    def to_dense(self) -> Matrix:
        """Form F J F^T."""
        return (self.factor if self.signs is None else self.factor * self.signs) @ self.factor.T

    def scaled(self, diagonal: Degree) -> GramOperator:
        """Return diag(x) F J F^T diag(x), which is a Gram operator again.

        Args:
            diagonal: The diagonal x.

        Returns:
            The operator with the factor diag(x) F.
        """
        return GramOperator(self.factor * diagonal[:, None], self.signs)


def cosine_gram(left: Float[Tensor, "nodes dim"], right: Float[Tensor, "nodes dim"] | None) -> GramOperator:
    """Return (1 + c) / 2 as a Gram operator, with c the cosine, or the symmetric cosine of queries and keys.

    For one set of vectors F = [v, 1] / sqrt(2). For two, (q k^T + k q^T) / 2 is the difference of two Gram matrices,
    ((q + k)(q + k)^T - (q - k)(q - k)^T) / 4, hence a signed one.

    Args:
        left: Unit vectors, values or queries.
        right: Unit vectors, keys; None to compare `left` with itself.

    Returns:
        Operator of rank dim + 1, or 2 dim + 1.
    """
    ones = left.new_ones(left.shape[0], 1)
    if right is None:
        return GramOperator(torch.cat([left, ones], dim=1) / 2**0.5)
    factor = torch.cat([(left + right) / 2, (left - right) / 2, ones], dim=1) / 2**0.5
    signs = factor.new_ones(factor.shape[1])
    signs[left.shape[1] : -1] = -1
    return GramOperator(factor, signs)
