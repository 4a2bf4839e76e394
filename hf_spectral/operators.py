"""Symmetric linear maps on the nodes of a graph: leaves that hold an affinity, and wrappers that combine them.

Every operator multiplies a block of vectors without forming its matrix; `to_dense` forms it, for tests and for problems
small enough to profit. An operator is abstract or final: to change one, wrap it.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

Vectors = Float[Tensor, "nodes vectors"]
Matrix = Float[Tensor, "nodes nodes"]
Degree = Float[Tensor, "nodes"]

# Rows of a kernel are formed a block at a time. On a processor, one that stays in its cache is several times faster;
# an accelerator wants few, large launches.
_CPU_BLOCK_BYTES = 1 << 20
_ACCELERATOR_BLOCK_BYTES = 256 << 20


class AffinityOperator(abc.ABC):
    """A real symmetric matrix, known by what it does to vectors."""

    @property
    @abc.abstractmethod
    def num_nodes(self) -> int:
        """Rows (and columns) of the matrix."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where the operator lives; vectors have to live there too."""

    @abc.abstractmethod
    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply the matrix with a block of vectors.

        Args:
            vectors: One vector a column.

        Returns:
            The products, one a column.
        """

    @abc.abstractmethod
    def to_dense(self) -> Matrix:
        """Form the matrix; memory grows with the square of `num_nodes`."""

    def degree(self) -> Degree:
        """Return the row sums d = W 1."""
        ones = torch.ones(self.num_nodes, 1, device=self.device)
        return self.matmul(ones)[:, 0]

    def __add__(self, other: AffinityOperator) -> AffinityOperator:
        """Return the sum of both operators."""
        return SumOperator([self, other])

    def __mul__(self, weight: float) -> AffinityOperator:
        """Return the operator times a number."""
        return SumOperator([self], [weight])

    __rmul__ = __mul__


@final
class DenseOperator(AffinityOperator):
    """A matrix held whole.

    Args:
        matrix: Symmetric; the caller vouches for it.
    """

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    @property
    def num_nodes(self) -> int:
        """Rows of the matrix."""
        return self.matrix.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the matrix."""
        return self.matrix.device

    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply densely."""
        return self.matrix @ vectors

    def to_dense(self) -> Matrix:
        """Return the matrix itself."""
        return self.matrix


@final
class IdentityOperator(AffinityOperator):
    """The identity.

    Args:
        num_nodes: Rows of the matrix.
        device: Where vectors live.
    """

    def __init__(self, num_nodes: int, device: torch.device) -> None:
        self._num_nodes = num_nodes
        self._device = device

    @property
    def num_nodes(self) -> int:
        """Rows of the matrix."""
        return self._num_nodes

    @property
    def device(self) -> torch.device:
        """Where vectors live."""
        return self._device

    def matmul(self, vectors: Vectors) -> Vectors:
        """Return the vectors."""
        return vectors

    def to_dense(self) -> Matrix:
        """Form the identity."""
        return torch.eye(self.num_nodes, device=self.device)


@final
class SparseOperator(AffinityOperator):
    """A matrix with few entries, such as a nearest-neighbor graph.

    Args:
        matrix: Sparse COO tensor, symmetric, coalesced.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    @property
    def num_nodes(self) -> int:
        """Rows of the matrix."""
        return self.matrix.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the matrix."""
        return self.matrix.device

    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply along the stored entries."""
        return torch.sparse.mm(self.matrix, vectors)

    def to_dense(self) -> Matrix:
        """Fill in the zeros."""
        return self.matrix.to_dense()


@final
class GramOperator(AffinityOperator):
    """The low-rank matrix F J F^T, with J = diag(signs).

    Args:
        factor: F, one row a node.
        signs: Diagonal of J, +1 or -1 a column; None means all +1.
    """

    def __init__(self, factor: Float[Tensor, "nodes rank"], signs: Float[Tensor, rank] | None = None) -> None:
        self.factor = factor
        self.signs = signs

    @property
    def num_nodes(self) -> int:
        """Rows of the factor."""
        return self.factor.shape[0]

    @property
    def rank(self) -> int:
        """Columns of the factor: an upper bound on the rank."""
        return self.factor.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the factor."""
        return self.factor.device

    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply by the thin factor twice."""
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


class KernelOperator(AffinityOperator):
    """The symmetric part (K + K^T) / 2 of a kernel whose rows are formed on demand and never held all at once.

    K need not be symmetric itself: softmax attention is not, and a symmetric kernel is given by its upper triangle.
    """

    @abc.abstractmethod
    def fill(self, block: slice, out: Float[Tensor, "block columns"]) -> None:
        """Write a block of rows of K, the columns of `columns(block)` only.

        Args:
            block: The rows wanted, with start and stop given.
            out: Where to write them.
        """

    def columns(self, block: slice) -> slice:
        """Return the columns outside of which the rows of K are zero.

        Args:
            block: The rows.

        Returns:
            All columns, unless a leaf knows better.
        """
        return slice(0, self.num_nodes)

    def blocks(self) -> Iterator[slice]:
        """Yield slices that cover all rows, each small enough for the device."""
        budget = _CPU_BLOCK_BYTES if self.device.type == "cpu" else _ACCELERATOR_BLOCK_BYTES
        size = max(1, budget // (4 * self.num_nodes))
        for start in range(0, self.num_nodes, size):
            yield slice(start, min(start + size, self.num_nodes))

    def sweep(self, memory: Matrix | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Form K, a block of rows at a time.

        Args:
            memory: Where to leave the rows; None forgets each block after its turn. Zeros of K are not written.

        Yields:
            Rows, columns, and the part of K that lies in them.
        """
        for block in self.blocks():
            columns = self.columns(block)
            if memory is None:
                out = torch.empty(block.stop - block.start, columns.stop - columns.start, device=self.device)
            else:
                out = memory[block, columns]
            self.fill(block, out)
            yield block, columns, out

    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply block by block: K x and K^T x in one sweep over the rows."""
        product = torch.zeros_like(vectors)
        for block, columns, rows in self.sweep():
            product[block] += rows @ vectors[columns]
            product[columns] += rows.T @ vectors[block]
        return product / 2

    def to_dense(self) -> Matrix:
        """Form the kernel and make it symmetric."""
        kernel = torch.zeros(self.num_nodes, self.num_nodes, device=self.device)
        for _ in self.sweep(kernel):
            pass
        return symmetrize_(kernel)


@final
class AttentionOperator(KernelOperator):
    """The network's own attention, softmax(scale * q k^T), averaged over the heads given and made symmetric.

    Args:
        query: Queries of one image.
        key: Keys of one image.
        scale: Factor on the product, 1 / sqrt(head_dim) in most networks.
    """

    def __init__(
        self, query: Float[Tensor, "heads nodes head_dim"], key: Float[Tensor, "heads nodes head_dim"], scale: float
    ) -> None:
        self.query = query * scale
        self.key_transposed = key.transpose(1, 2)

    @property
    def num_nodes(self) -> int:
        """Tokens of the image."""
        return self.query.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the queries."""
        return self.query.device

    def fill(self, block: slice, out: Float[Tensor, "block columns"]) -> None:
        """Write the attention of some queries."""
        logits = torch.empty_like(out)
        for head, (query, key) in enumerate(zip(self.query, self.key_transposed, strict=True)):
            torch.mm(query[block], key, out=logits)
            if head == 0:
                torch.softmax(logits, dim=-1, out=out)
            else:
                out += torch.softmax(logits, dim=-1, out=logits)
        out /= self.query.shape[0]


@final
class ExponentialOperator(KernelOperator):
    """exp((c - 1) / temperature), with c = (a_i . b_j + b_i . a_j) / 2 the symmetric cosine of two unit vectors.

    Args:
        left: Unit vectors a.
        right: Unit vectors b; None where they are the same as `left`.
        temperature: tau, above 0.
    """

    def __init__(
        self, left: Float[Tensor, "nodes dim"], right: Float[Tensor, "nodes dim"] | None, temperature: float
    ) -> None:
        # (c - 1) / tau is one inner product of longer vectors: ([a, b] . [b, a] / 2 - 1) / tau. Their last entry makes
        # the -1, so that the rows of a product need only be exponentiated.
        ones = left.new_ones(left.shape[0], 1)
        self.left = torch.cat([left, ones] if right is None else [left / 2, right / 2, ones], dim=1) / temperature
        self.right = torch.cat([left, -ones] if right is None else [right, left, -ones], dim=1)

    @property
    def num_nodes(self) -> int:
        """Tokens of the image."""
        return self.left.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""
        return self.left.device

    def columns(self, block: slice) -> slice:
        """Return the columns from the diagonal on: the other half is the same by symmetry."""
        return slice(block.start, self.num_nodes)

    def fill(self, block: slice, out: Float[Tensor, "block columns"]) -> None:
        """Write the affinities of some tokens to those from the diagonal on, doubled beyond the diagonal block."""
        torch.mm(self.left[block], self.right[block.start :].T, out=out).exp_()
        out[:, block.stop - block.start :] *= 2


@final
class SumOperator(AffinityOperator):
    """A weighted sum of operators on the same nodes.

    Args:
        terms: The operators, at least one.
        weights: One factor a term; None means 1 each.
    """

    def __init__(self, terms: Sequence[AffinityOperator], weights: Sequence[float] | None = None) -> None:
        self.terms = list(terms)
        self.weights = [1.0] * len(self.terms) if weights is None else list(weights)

    @property
    def num_nodes(self) -> int:
        """Nodes of the first term."""
        return self.terms[0].num_nodes

    @property
    def device(self) -> torch.device:
        """Device of the first term."""
        return self.terms[0].device

    def matmul(self, vectors: Vectors) -> Vectors:
        """Add up the products."""
        product = torch.zeros_like(vectors)
        for term, weight in zip(self.terms, self.weights, strict=True):
            product.add_(term.matmul(vectors), alpha=weight)
        return product

    def to_dense(self) -> Matrix:
        """Add up the matrices."""
        total = torch.zeros(self.num_nodes, self.num_nodes, device=self.device)
        for term, weight in zip(self.terms, self.weights, strict=True):
            total.add_(term.to_dense(), alpha=weight)
        return total


@final
class NormalizedOperator(AffinityOperator):
    """The normalized affinity D^-1/2 W D^-1/2; a node without neighbors keeps a row of zeros, not of infinities.

    Args:
        affinity: W, with entries of at least 0.
    """

    def __init__(self, affinity: AffinityOperator) -> None:
        self.affinity = affinity
        self.inverse_root = inverse_root_degree(affinity.degree())

    @property
    def num_nodes(self) -> int:
        """Nodes of W."""
        return self.affinity.num_nodes

    @property
    def device(self) -> torch.device:
        """Device of W."""
        return self.affinity.device

    def matmul(self, vectors: Vectors) -> Vectors:
        """Scale, multiply, scale."""
        scale = self.inverse_root[:, None]
        return scale * self.affinity.matmul(scale * vectors)

    def to_dense(self) -> Matrix:
        """Scale rows and columns of W."""
        return self.inverse_root[:, None] * self.affinity.to_dense() * self.inverse_root


@final
class ResampledOperator(AffinityOperator):
    """P^T S P: an operator on a coarse map, seen from a finer one through area pooling along rows and columns.

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
        self.coarse = coarse
        self.pool_rows = pool_rows
        self.pool_columns = pool_columns

    @property
    def num_nodes(self) -> int:
        """Nodes of the fine map."""
        return self.pool_rows.shape[1] * self.pool_columns.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the coarse operator."""
        return self.coarse.device

    def matmul(self, vectors: Float[Tensor, "fine vectors"]) -> Float[Tensor, "fine vectors"]:
        """Pool, multiply on the coarse map, spread back by the transpose."""
        pooled = self._along_axes(vectors, self.pool_rows, self.pool_columns)
        return self._along_axes(self.coarse.matmul(pooled), self.pool_rows.T, self.pool_columns.T)

    def to_dense(self) -> Float[Tensor, "fine fine"]:
        """Form P as the Kronecker product of its two factors."""
        pooling = torch.kron(self.pool_rows, self.pool_columns)
        return pooling.T @ self.coarse.to_dense() @ pooling

    @staticmethod
    def _along_axes(vectors: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        maps = vectors.reshape(rows.shape[1], columns.shape[1], -1)
        return torch.einsum("ih,jw,hwk->ijk", rows, columns, maps).reshape(-1, vectors.shape[1])


def inverse_root_degree(degree: Degree) -> Degree:
    """Return d^-1/2, and 0 for a node without neighbors.

    Args:
        degree: Row sums of an affinity, at least 0 up to rounding.

    Returns:
        Finite numbers of at least 0.
    """
    return torch.where(degree > 0, degree.clamp_min(torch.finfo(degree.dtype).tiny).rsqrt(), torch.zeros_like(degree))


def symmetrize_(matrix: Matrix, block: int = 1024) -> Matrix:
    """Replace a matrix by its symmetric part, in place, a pair of blocks at a time.

    Args:
        matrix: Square matrix, overwritten.
        block: Rows and columns of a block.

    Returns:
        The same memory.
    """
    size = matrix.shape[0]
    for i in range(0, size, block):
        for j in range(i, size, block):
            upper, lower = matrix[i : i + block, j : j + block], matrix[j : j + block, i : i + block]
            mean = (upper + lower.T) / 2
            upper.copy_(mean)
            lower.copy_(mean.T)
    return matrix
