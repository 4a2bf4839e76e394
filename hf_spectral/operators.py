"""Symmetric linear maps on the nodes of a graph: operators that store an affinity, and wrappers that combine them.

Every operator multiplies a block of vectors without forming its matrix; `to_dense` forms it, for tests and for problems
small enough to profit. An operator is abstract or final: to change one, wrap it.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

Vectors = Float[Tensor, "nodes vectors"]
Matrix = Float[Tensor, "nodes nodes"]
Degree = Float[Tensor, " nodes"]
Edges = tuple[Int[Tensor, " edges"], Int[Tensor, " edges"], Float[Tensor, " edges"]]

# Rows of a kernel are formed a block at a time. A processor is fastest with a multiple of 32 rows, in a block that
# stays in its cache; an accelerator wants few, large launches.
_CPU_ROWS = 128
_CPU_BLOCK_BYTES = 16 << 20
_ACCELERATOR_BLOCK_BYTES = 256 << 20
# Tokens, evenly spaced, that the spread of cosines is measured on.
_SPREAD_TOKENS = 256


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


class KernelOperator(AffinityOperator):
    """The symmetric part (K + K^T) / 2 of a kernel whose rows are computed on demand and never stored all at once.

    K need not be symmetric itself: softmax attention is not, and a symmetric kernel is given by its upper triangle.

    Args:
        num_nodes: Number of nodes.
        device: Device of the operator.
        num_parts: Number of kernels that an accelerator forms at once, e.g. the number of heads; sets the memory of a
            block.
    """

    def __init__(self, num_nodes: int, device: torch.device, num_parts: int = 1) -> None:
        super().__init__(num_nodes, device)
        self._num_parts = num_parts

    @abc.abstractmethod
    def fill(self, block: slice, out: Float[Tensor, "block columns"]) -> None:
        """Write a block of rows of K, the columns of `columns(block)` only.

        Args:
            block: The rows wanted, with start and stop given.
            out: Memory that the rows are written to.
        """

    def columns(self, block: slice) -> slice:
        """Return the columns outside of which the rows of K are zero.

        Args:
            block: The rows.

        Returns:
            All columns, unless a subclass overrides it.
        """
        return slice(0, self.num_nodes)

    def blocks(self) -> Iterator[slice]:
        """Yield slices that cover all rows, each small enough for the device."""
        row_bytes = 4 * self.num_nodes
        if self.device.type == "cpu":
            size = min(_CPU_ROWS, max(32, _CPU_BLOCK_BYTES // row_bytes // 32 * 32))
        else:
            size = max(1, _ACCELERATOR_BLOCK_BYTES // (row_bytes * self._num_parts))
        for start in range(0, self.num_nodes, size):
            yield slice(start, min(start + size, self.num_nodes))

    def parts(self, memory: Matrix) -> Iterator[tuple[slice, slice, Tensor]]:
        """Iterate over a stored K, one block of rows at a time.

        Args:
            memory: Matrix that holds the rows of K.

        Yields:
            Rows, columns, and the entries of the matrix there.
        """
        for block in self.blocks():
            columns = self.columns(block)
            yield block, columns, memory[block, columns]

    def sweep(self, memory: Matrix | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Compute K, one block of rows at a time.

        Args:
            memory: Matrix that the rows are written to, without the zeros of K; None stores no rows.

        Yields:
            Rows, columns, and the entries of K there.
        """
        for block in self.blocks():
            columns = self.columns(block)
            if memory is None:
                shape = (block.stop - block.start, columns.stop - columns.start)
                out = torch.empty(shape, dtype=torch.float32, device=self.device)
            else:
                out = memory[block, columns]
            self.fill(block, out)
            yield block, columns, out

    def matmul(self, vectors: Vectors) -> Vectors:
        """Multiply block by block: K x and K^T x in one sweep over the rows."""
        return symmetric_product(self.sweep(), vectors)

    def to_dense(self) -> Matrix:
        """Form the kernel and make it symmetric."""
        kernel = torch.zeros(self.num_nodes, self.num_nodes, dtype=torch.float32, device=self.device)
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
        super().__init__(query.shape[1], query.device, num_parts=query.shape[0])
        self.query = query * scale
        self.key_transposed = key.transpose(1, 2).contiguous()

    def fill(self, block: slice, out: Float[Tensor, "block columns"]) -> None:
        """Write the attention of some queries: all heads at once, or on a processor one by one, in its cache."""
        if self.device.type != "cpu":
            logits = torch.bmm(self.query[:, block], self.key_transposed)
            torch.mean(torch.softmax(logits, dim=-1, out=logits), dim=0, out=out)
            return
        further = torch.empty_like(out)
        for head, (query, key) in enumerate(zip(self.query[:, block], self.key_transposed, strict=True)):
            rows = further if head else out
            torch.softmax(torch.mm(query, key, out=rows), dim=-1, out=rows)
            if head:
                out += rows
        out /= len(self.query)


@final
class ExponentialOperator(KernelOperator):
    """exp((c - 1) / temperature), with c = (a_i . b_j + b_i . a_j) / 2 the symmetric cosine of two unit vectors.

    Args:
        left: Unit vectors a.
        right: Unit vectors b; None where they are the same as `left`.
        temperature: tau, above 0.
    """

    def __init__(
        self,
        left: Float[Tensor, "nodes dim"],
        right: Float[Tensor, "nodes dim"] | None,
        temperature: float | Float[Tensor, ""],
    ) -> None:
        super().__init__(left.shape[0], left.device)
        # (c - 1) / tau + log 2 is one inner product of longer vectors: ([a, b] . [b, a] / 2 - 1 + tau log 2) / tau.
        # The last entry of the vectors adds everything but the cosine, so that the rows need only be exponentiated.
        ones = left.new_ones(left.shape[0], 1)
        self.left = torch.cat([left, ones] if right is None else [left / 2, right / 2, ones], dim=1)
        self.left /= temperature
        last = (temperature * math.log(2) - 1) * ones
        self.right = torch.cat([left, last] if right is None else [right, left, last], dim=1)

    def columns(self, block: slice) -> slice:
        """Return the columns from the diagonal on; the other half follows by symmetry."""
        return slice(block.start, self.num_nodes)

    def fill(self, block: slice, out: Float[Tensor, "block columns"]) -> None:
        """Write the affinities of some tokens to those from the diagonal on, doubled beyond the diagonal block."""
        torch.mm(self.left[block], self.right[block.start :].T, out=out).exp_()
        out[:, : block.stop - block.start] /= 2


def symmetric_product(parts: Iterable[tuple[slice, slice, Tensor]], vectors: Vectors) -> Vectors:
    """Multiply the symmetric part (K + K^T) / 2 with vectors, reading each part of K once.

    Vectors are multiplied from the left, which is up to three times as fast for few vectors.

    Args:
        parts: Rows, columns, and the entries of K there; K is zero elsewhere.
        vectors: Columns.

    Returns:
        The product.
    """
    wide = vectors.T.contiguous()
    product = torch.zeros_like(wide)
    for rows, columns, part in parts:
        product[:, rows] += wide[:, columns] @ part.T
        product[:, columns] += wide[:, rows] @ part
    return product.T / 2


def symmetrize_(matrix: Matrix, block: int = 256) -> Matrix:
    """Replace a matrix by its symmetric part, in place, one pair of blocks at a time.

    Args:
        matrix: Square matrix, overwritten.
        block: Rows and columns of a block; a pair of blocks should fit into the processor's cache.

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


def cosine_spread(left: Float[Tensor, "nodes dim"], right: Float[Tensor, "nodes dim"] | None) -> Float[Tensor, ""]:
    """Return the standard deviation of the symmetric cosines of all pairs, of at most 256 tokens.

    Args:
        left: Unit vectors a.
        right: Unit vectors b; None where they are the same as `left`.

    Returns:
        A number of at least 0.
    """
    step = -(-left.shape[0] // _SPREAD_TOKENS)
    cosines = left[::step] @ (left if right is None else right)[::step].T
    return torch.std((cosines + cosines.T) / 2, correction=0)


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


def nearest_neighbors(
    left: Float[Tensor, "nodes dim"],
    right: Float[Tensor, "nodes dim"] | None,
    num_neighbors: int,
    threshold: float,
    *,
    images: Int[Tensor, " nodes"] | None = None,
    num_between: int = 0,
    block_size: int = 1024,
) -> Edges:
    """Find the nearest other tokens of each token by cosine c_ij = a_i . b_j, or (a_i . b_j + b_i . a_j) / 2.

    Ties are broken by `torch.topk`, in the same way in every run on one machine.

    Args:
        left: Unit vectors a.
        right: Unit vectors b, for the symmetric cosine of queries and keys; None compares `left` with itself.
        num_neighbors: Neighbors per token at most.
        threshold: Tokens with cosines at or below it are not neighbors.
        images: Image of each token; neighbors are then sought in the token's own image.
        num_between: Further neighbors per token, sought among the other images; used with `images` only.
        block_size: Tokens per block of the search: bounds the memory, does not change the result.

    Returns:
        For each pair: index of the token, index of its neighbor, and their cosine.
    """
    num_nodes = left.shape[0]
    found: list[Edges] = []
    for block in torch.arange(num_nodes, device=left.device).split(block_size):
        cosines = cosines_with_others(left, right, block)
        own = None if images is None else images[block, None] == images
        for count, left_out in [(num_neighbors, None)] if own is None else [(num_neighbors, ~own), (num_between, own)]:
            candidates = cosines if left_out is None else cosines.masked_fill(left_out, -torch.inf)
            values, neighbors = candidates.topk(min(count, num_nodes - 1), dim=1)
            rows, ranks = (values > threshold).nonzero(as_tuple=True)
            found.append((block[rows], neighbors[rows, ranks], values[rows, ranks]))
    rows, columns, weights = (torch.cat(part) for part in zip(*found, strict=True))
    return rows, columns, weights


def cosines_with_others(
    left: Float[Tensor, "nodes dim"], right: Float[Tensor, "nodes dim"] | None, asking: Int[Tensor, " asking"]
) -> Float[Tensor, "asking nodes"]:
    """Return the cosines that `nearest_neighbors` compares, minus infinity between a token and itself.

    Args:
        left: Unit vectors a.
        right: Unit vectors b, or None.
        asking: The tokens of the rows.

    Returns:
        One row per token asking.
    """
    cosines = left[asking] @ (left if right is None else right).T
    if right is not None:
        cosines.add_(right[asking] @ left.T).div_(2)
    return cosines.scatter_(1, asking[:, None], -torch.inf)


def neighbor_graph(edges: Edges, num_nodes: int) -> Float[Tensor, "nodes nodes"]:
    """Return the symmetric sparse graph (N + N^T) / 2 of the directed edges N.

    Args:
        edges: Directed edges, searched for all tokens.
        num_nodes: Number of tokens.

    Returns:
        Sparse matrix: the cosine where two tokens are neighbors of each other, half of it where only one is.
    """
    rows, columns, weights = edges
    indices = torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])])
    shape = (num_nodes, num_nodes)
    return torch.sparse_coo_tensor(indices, (weights / 2).repeat(2), shape, check_invariants=False).coalesce()
