"""Leading eigenvectors of H J H^T from the Gram matrix C = H^T H alone, for any signs J = diag(+-1).

With x = H v the eigenproblem H J H^T x = mu x becomes the symmetric pencil (C J C) v = mu C v, and unit x means
v^T C v = 1. The operator J C is self-adjoint in the inner product of C, so that one product with C serves both the
operator and the inner product, and C is never factored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral import krylov
from hf_spectral.basis.gram import BlockGram
from hf_spectral.basis.model import SpectralBasis
from hf_spectral.basis.sums import Totals
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import NotConvergedError, SpectralError
from hf_spectral.result import laplacian_eigenvalues
from hf_spectral.version import __version__

# Eigenvalues at or below this are rounding of float32 products (the largest eigenvalue is near 1).
_ZERO = 1e-6
# Products in float32 leave C indefinite by less than this share of its trace where features depend on each other.
# Adding it to the diagonal keeps C an inner product during the search; the pairs are then refined on C itself.
_SHIFT = 1e-8
_DENSE_BELOW = 600
_TOLERANCE = 1e-7
_MAX_STEPS = 150  # Of two block products each.


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
            vectors: One vector per column, float64.

        Returns:
            The products.
        """
        return self.roots[:, None] * self.gram.matmul(self.roots[:, None] * vectors)


@dataclasses.dataclass(frozen=True)
class Eigenpairs:
    """Leading eigenpairs of a pencil.

    Args:
        values: mu, descending, above zero; fewer than wanted if no more exist.
        vectors: v, one per column, of unit length in the inner product of C.
        residuals: ||H J H^T x - mu x|| of x = H v.
    """

    values: Float[Tensor, " eigenvectors"]
    vectors: Float[Tensor, "width eigenvectors"]
    residuals: Float[Tensor, " eigenvectors"]


def leading_eigenpairs(pencil: Pencil, count: int, seed: int) -> Eigenpairs:
    """Find the largest eigenvalues: densely where that is cheap, else by a thick-restart block Krylov method.

    The method is `krylov.leading_eigenpairs`, in float64 and in the inner product of C.

    Args:
        pencil: The pencil.
        count: Eigenpairs wanted.
        seed: Seed of the start block; the result does not depend on it beyond the tolerance of the residuals, 1e-7.

    Returns:
        At most `count` pairs. The largest coefficient of each vector is positive.

    Raises:
        NotConvergedError: If the residuals stay above the tolerance.
    """
    width = pencil.signs.shape[0]
    if width < _DENSE_BELOW or 6 * count > width:
        values, vectors = _dense(pencil, count)
    else:
        values, vectors = _krylov(pencil, count, seed)
    values, vectors, residuals = _refined(pencil, vectors[:, values > _ZERO])
    # Within its residual of mu lies an eigenvalue: where that may be zero, the pair is rounding of float32 products.
    kept = values > residuals.clamp_min(_ZERO)
    return Eigenpairs(values[kept], krylov.fix_signs(vectors[:, kept]), residuals[kept])


def solve_totals(
    totals: Totals,
    config: SpectralConfig,
    weights: Sequence[float],
    seed: int,
    max_width: int | None,
    backbone: dict[str, Any],
    exactly: bool = True,
) -> SpectralBasis:
    """Find the leading eigenvectors and fold weights and signs into one projection per layer.

    Args:
        totals: Sums of both passes.
        config: With the number of eigenvectors wanted.
        weights: One per layer, sum 1; layers of weight 0 take no part.
        seed: Seed of the start vectors.
        max_width: Stored in the basis.
        backbone: Stored in the basis.
        exactly: False returns fewer eigenvectors than wanted if no more exist.

    Returns:
        The basis.

    Raises:
        SpectralError: If `exactly` holds and fewer eigenvectors exist than wanted, or an eigenvalue lies outside
            [0, 2], as where the two passes saw different numbers.
    """
    used = [position for position, weight in enumerate(weights) if weight > 0]
    signs, sums = ([part[position] for position in used] for part in (totals.signs, totals.sums))
    # Sums of a share of the images give degrees that are too small by that share, and G too large by its root.
    share = totals.num_summed / totals.num_in_gram
    roots = torch.cat([torch.full_like(part, (share * weights[i]) ** 0.5) for i, part in zip(used, signs, strict=True)])
    gram = totals.start_gram().symmetrize_().restricted(used)
    pairs = leading_eigenpairs(Pencil(gram, roots, torch.cat(signs)), config.num_eigenvectors, seed)
    if len(pairs.values) < config.num_eigenvectors and exactly:
        raise SpectralError(
            "num_eigenvectors",
            expected=f"at most the {len(pairs.values)} that the tokens of {totals.num_in_gram} images determine",
            got=config.num_eigenvectors,
            fix="Ask for fewer, or fit on more images that differ",
        )
    # Estimated degrees are known up to a factor: the one that gives the trivial eigenvector the eigenvalue 0.
    scale = 1.0 if share == 1 else 1 / pairs.values[:1].clamp_min(_ZERO)
    projection = roots[:, None] * pairs.vectors
    # The trivial eigenvector has entries of one sign (Perron and Frobenius): positive ones.
    if torch.cat(sums) @ projection[:, 0] < 0:
        projection[:, 0] *= -1
    return SpectralBasis(
        eigenvalues=laplacian_eigenvalues(scale * pairs.values),
        residuals=(scale * pairs.residuals).float().cpu(),
        projections=tuple(part.float().cpu().contiguous() for part in projection.split([len(part) for part in signs])),
        sums=tuple((sign * total).cpu() for sign, total in zip(signs, sums, strict=True)),
        num_tokens=totals.num_tokens[used].cpu(),
        layers=tuple(totals.layers[position] for position in used),
        weights=tuple(weights[position] for position in used),
        num_images=totals.num_in_gram,
        num_nodes=totals.num_nodes,
        config=dataclasses.replace(config, num_eigenvectors=len(pairs.values)),
        max_width=max_width,
        backbone=backbone,
        versions={"torch": str(torch.__version__), "hf_spectral": __version__},
    )


def _refined(pencil: Pencil, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve within the span of J C v, which holds nothing of the null space of C; return the pairs and residuals."""
    start = pencil.signs[:, None] * pencil.multiply(vectors)
    pairs = _ritz_pairs(pencil, start, vectors.shape[1], 0.0, tolerance=0.0, max_steps=1)
    return pairs.values, pairs.duals, pairs.residuals


def _dense(pencil: Pencil, count: int) -> tuple[Tensor, Tensor]:
    """Solve densely: C = L L^T from those eigenvectors of C that are not rounding noise, then L^T J L."""
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


def _krylov(pencil: Pencil, wanted: int, seed: int) -> tuple[Tensor, Tensor]:
    kept = wanted + max(8, wanted // 4)
    shift = _SHIFT * float((pencil.roots**2 * pencil.gram.diagonal()).sum())
    start = krylov.random_block(len(pencil.signs), kept, seed, torch.float64, pencil.signs.device)
    pairs = _ritz_pairs(pencil, start, wanted, shift, _TOLERANCE, _MAX_STEPS)
    if not pairs.converged and pairs.steps == _MAX_STEPS:
        raise NotConvergedError(
            f"The basis was not found in {_MAX_STEPS} steps: the residual is {float(pairs.residuals.max()):.1e}. "
            "Ask for fewer eigenvectors."
        )
    return pairs.values, pairs.duals


def _ritz_pairs(
    pencil: Pencil, start: Tensor, wanted: int, shift: float, tolerance: float, max_steps: int
) -> krylov.RitzPairs:
    """Solve J x = mu C^-1 x, x = C v, which needs products with C only."""
    return krylov.leading_eigenpairs(
        lambda vectors: pencil.signs[:, None] * vectors,
        start,
        wanted,
        tolerance=tolerance,
        max_steps=max_steps,
        inverse_mass=lambda vectors: pencil.multiply(vectors) + shift * vectors,
    )
