"""Leading eigenvectors of H J H^T from the Gram matrix C = H^T H alone, for any signs J = diag(+-1).

With x = H v the eigenproblem H J H^T x = mu x becomes the symmetric pencil (C J C) v = mu C v, and unit x means
v^T C v = 1. So the operator J C is self-adjoint in the inner product of C, and one multiplication with C a step serves
both, and C is never factored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.basis.gram import BlockGram
from hf_spectral.errors import NotConvergedError

# Eigenvalues at or below it are rounding of products in float32 (the largest is near 1).
_ZERO = 1e-6
# Products in float32 leave C indefinite by less than this share of its trace where features depend on each other.
# Adding it to the diagonal while searching keeps C an inner product; what is found is then refined on C itself.
_SHIFT = 1e-8
# Directions of a block whose share of its Gram matrix falls below this are rounding noise.
_DEPENDENT = 1e-10
_DENSE_BELOW = 600
_MAX_STEPS = 300


@dataclasses.dataclass(frozen=True)
class Pencil:
    """The pencil of a weighted, signed Gram matrix.

    Args:
        gram: The plain sum C.
        roots: Square root of each column's layer weight: C becomes diag(roots) C diag(roots).
        signs: Diagonal of J.
    """

    gram: BlockGram
    roots: Float[Tensor, " width"]
    signs: Float[Tensor, " width"]

    def multiply(self, vectors: Float[Tensor, "width vectors"]) -> Float[Tensor, "width vectors"]:
        """Multiply with the weighted C.

        Args:
            vectors: One vector a column, float64.

        Returns:
            The products.
        """
        return self.roots[:, None] * self.gram.matmul(self.roots[:, None] * vectors)


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """What was found.

    Args:
        values: mu, descending, above zero: perhaps fewer than wanted, and then all there are.
        vectors: v, one a column, of unit length in the inner product of C.
        residuals: ||H J H^T x - mu x|| of x = H v.
        steps: Multiplications of a block with C.
    """

    values: Float[Tensor, " eigenvectors"]
    vectors: Float[Tensor, "width eigenvectors"]
    residuals: Float[Tensor, " eigenvectors"]
    steps: int


def leading_eigenpairs(pencil: Pencil, count: int, seed: int, tolerance: float = 1e-7) -> Eigenpairs:
    """Find the largest eigenvalues: densely where that is cheap, else by a thick-restart block Krylov method.

    The method is that of `solvers.EigenSolver`, in float64 and in the inner product of C.

    Args:
        pencil: The pencil.
        count: Eigenpairs wanted.
        seed: Seed of the start block; what is found does not depend on it beyond the tolerance.
        tolerance: Bound on the residuals.

    Returns:
        At most `count` pairs. Signs are fixed by the coefficients: the largest of each vector is positive.

    Raises:
        NotConvergedError: If the residuals stay above the tolerance.
    """
    width = pencil.signs.shape[0]
    if width < _DENSE_BELOW or 6 * count > width:
        values, vectors, steps = *_dense(pencil, count), 1
    else:
        values, vectors, steps = _krylov(pencil, count, seed, tolerance)
    values, vectors, residuals = _refined(pencil, vectors[:, values > _ZERO])
    # Within its residual of mu lies an eigenvalue: where that may be zero, the pair is rounding of float32 products.
    kept = values > residuals.clamp_min(_ZERO)
    values, vectors, residuals = values[kept], vectors[:, kept], residuals[kept]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)) if kept.any() else vectors[:1]
    return Eigenpairs(values, torch.where(largest < 0, -vectors, vectors), residuals, steps)


def _refined(pencil: Pencil, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs in the span of J C v, where nothing of the null space of C is left, and their residuals."""
    vectors = pencil.signs[:, None] * pencil.multiply(vectors)
    span = _Span(pencil.multiply, pencil.signs, vectors.shape[1])
    span.extend(vectors, pencil.multiply(vectors))
    values, coefficients = span.rayleigh_ritz(vectors.shape[1])
    errors = span.residuals(values, coefficients)
    residuals = (errors * pencil.multiply(errors)).sum(0).clamp_min(0).sqrt()
    return values, span.vectors[:, : span.size] @ coefficients, residuals


def _dense(pencil: Pencil, count: int) -> tuple[Tensor, Tensor]:
    """Return the pairs by way of C = L L^T, from C's eigenvectors that are no rounding noise, and of L^T J L."""
    weighted = pencil.roots[:, None] * pencil.gram.to_dense() * pencil.roots
    spread, rotation = torch.linalg.eigh((weighted + weighted.T) / 2)
    kept = spread > spread[-1].clamp_min(1e-300) * 1e-9
    spread, lower = spread[kept], rotation[:, kept] * spread[kept].sqrt()
    if (pencil.signs > 0).all():  # L^T L is diagonal.
        values, products = spread, lower
    else:
        values, vectors = torch.linalg.eigh(lower.T @ (pencil.signs[:, None] * lower))
        products = lower @ vectors[:, -count:]
    values, products = values.flip(0)[:count], products.flip(1)[:, :count]
    safe = torch.where(values > _ZERO, values, torch.ones_like(values))
    return values, pencil.signs[:, None] * products / safe


def _krylov(pencil: Pencil, wanted: int, seed: int, tolerance: float) -> tuple[Tensor, Tensor, int]:
    kept = wanted + max(8, wanted // 4)
    shift = _SHIFT * float((pencil.roots**2 * pencil.gram.diagonal()).sum())

    def multiply(vectors: Tensor) -> Tensor:
        return pencil.multiply(vectors) + shift * vectors

    span = _Span(multiply, pencil.signs, 4 * kept)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(pencil.signs.shape[0], kept, dtype=torch.float64, generator=generator).to(pencil.signs.device)
    span.extend(start, multiply(start))
    for step in range(2, _MAX_STEPS + 2):
        values, coefficients = span.rayleigh_ritz(kept)
        residuals = span.residuals(values, coefficients)
        products = multiply(residuals)
        norms = (residuals * products).sum(0).clamp_min(0).sqrt()
        is_open = norms > tolerance
        if not is_open[:wanted].any():
            return values[:wanted], span.vectors[:, : span.size] @ coefficients[:, :wanted], step
        if span.size + int(is_open.sum()) > span.capacity:
            span.restart(coefficients)
        if not span.extend(residuals[:, is_open] / norms[is_open], products[:, is_open] / norms[is_open]):
            return values[:wanted], span.vectors[:, : span.size] @ coefficients[:, :wanted], step
    raise NotConvergedError(
        f"The basis was not found in {_MAX_STEPS} steps: the residual is {float(norms[:wanted].max()):.1e}. "
        "Ask for fewer eigenvectors."
    )


class _Span:
    """Vectors V, orthonormal in the inner product of C, with C V beside them, so that every product is made once."""

    def __init__(self, multiply: Callable[[Tensor], Tensor], signs: Tensor, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._multiply = multiply
        self._signs = signs[:, None]
        shape = (signs.shape[0], capacity)
        self.vectors, self._products = (torch.empty(shape, dtype=torch.float64, device=signs.device) for _ in range(2))

    def extend(self, block: Tensor, products: Tensor) -> bool:
        """Return whether a block, given with its products, holds anything new, which is then appended."""
        for _ in range(2):  # Twice is enough for orthogonality to working precision.
            overlap = self._products[:, : self.size].T @ block
            block = block - self.vectors[:, : self.size] @ overlap
            products = products - self._products[:, : self.size] @ overlap
            gram = block.T @ products
            scale = gram.diagonal().clamp_min(1e-300).rsqrt()
            values, rotation = torch.linalg.eigh((gram + gram.T) / 2 * scale * scale[:, None])
            kept = values > max(float(values[-1]), 0.0) * _DEPENDENT if values.numel() else values > 0
            transform = scale[:, None] * (rotation[:, kept] * values[kept].rsqrt())
            block, products = block @ transform, products @ transform
        new = slice(self.size, self.size + block.shape[1])
        self.vectors[:, new], self._products[:, new] = block, products
        self.size = new.stop
        return block.shape[1] > 0

    def rayleigh_ritz(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the largest Ritz values, descending, and the coefficients of their vectors."""
        products = self._products[:, : self.size]
        projected = products.T @ (self._signs * products)
        values, coefficients = torch.linalg.eigh((projected + projected.T) / 2)
        return values.flip(0)[:count], coefficients.flip(1)[:, :count]

    def residuals(self, values: Tensor, coefficients: Tensor) -> Tensor:
        """Return J C v - mu v of the Ritz pairs."""
        products = self._products[:, : self.size] @ coefficients
        return self._signs * products - self.vectors[:, : self.size] @ (coefficients * values)

    def restart(self, coefficients: Tensor) -> None:
        """Keep the span of the Ritz vectors only; their products are made anew, so that rounding does not pile up."""
        count = coefficients.shape[1]
        self.vectors[:, :count] = self.vectors[:, : self.size] @ coefficients
        self._products[:, :count] = self._multiply(self.vectors[:, :count])
        self.size = count
