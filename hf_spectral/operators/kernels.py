"""Kernels between tokens, computed one block of rows at a time: softmax attention and the exponential of a cosine."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.operators.base import AffinityOperator, Matrix, Vectors

# Rows of a kernel are formed a block at a time. A processor multiplies best with some multiple of 32 rows, and much
# faster where what it forms stays in its cache; an accelerator wants few, large launches.
_CPU_ROWS = 128
_CPU_BLOCK_BYTES = 16 << 20
_ACCELERATOR_BLOCK_BYTES = 256 << 20
# Tokens, evenly spaced, that the spread of cosines is measured on.
_SPREAD_TOKENS = 256


class KernelOperator(AffinityOperator):
    """The symmetric part (K + K^T) / 2 of a kernel whose rows are computed on demand and never stored all at once.

    K need not be symmetric itself: softmax attention is not, and a symmetric kernel is given by its upper triangle.

    Args:
        num_nodes: Number of nodes.
        device: Device of the operator.
        num_parts: Number of kernels averaged into one, e.g. the number of heads; sets the memory of a block.
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
        row_bytes = 4 * self.num_nodes * self._num_parts
        if self.device.type == "cpu":
            size = min(_CPU_ROWS, max(32, _CPU_BLOCK_BYTES // row_bytes // 32 * 32))
        else:
            size = max(1, _ACCELERATOR_BLOCK_BYTES // row_bytes)
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
        self.key_transposed = key.transpose(1, 2)

    def fill(self, block: slice, out: Float[Tensor, "block columns"]) -> None:
        """Write the attention of some queries, all heads at once: threads meet three times per block, not per head."""
        logits = torch.bmm(self.query[:, block], self.key_transposed)
        torch.mean(torch.softmax(logits, dim=-1, out=logits), dim=0, out=out)


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
        super().__init__(left.shape[0], left.device)
        # (c - 1) / tau + log 2 is one inner product of longer vectors: ([a, b] . [b, a] / 2 - 1 + tau log 2) / tau.
        # Their last entry makes what follows the product, so that the rows need only be exponentiated.
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


def cosine_spread(left: Float[Tensor, "nodes dim"], right: Float[Tensor, "nodes dim"] | None) -> float:
    """Return the standard deviation of the symmetric cosines of all pairs, of at most 256 tokens.

    With c_ij = (a_i . b_j + b_i . a_j) / 2, the sum of all c_ij^2 is [tr(A^T A B^T B) + tr(B^T A B^T A)] / 2: no matrix
    of pairs is needed.

    Args:
        left: Unit vectors a.
        right: Unit vectors b; None where they are the same as `left`.

    Returns:
        A number of at least 0.
    """
    step = -(-left.shape[0] // _SPREAD_TOKENS)
    a = left[::step]
    b = a if right is None else right[::step]
    mixed = b.T @ a
    squares = (mixed * mixed.T).sum() if right is None else ((a.T @ a) * (b.T @ b) + mixed * mixed.T).sum() / 2
    pairs = a.shape[0] ** 2
    mean = (a.sum(0) @ b.sum(0)) / pairs
    variance = float(squares / pairs - mean.square())
    return max(variance, 0.0) ** 0.5
