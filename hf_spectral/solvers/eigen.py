"""The exact solver: the leading eigenvectors in a fraction of a second, where gradient descent takes minutes."""

from __future__ import annotations

import dataclasses
import math

import scipy.linalg
import torch
from torch import Tensor

from hf_spectral.config import keep_ints, keep_numbers
from hf_spectral.graph import JointProblem
from hf_spectral.operators import Vectors
from hf_spectral.solvers.base import Solution, Solver

# Directions of a block whose share of its Gram matrix falls below this are rounding noise in float32.
_DEPENDENT = 1e-10
# Vectors sought beyond those wanted, so that the gap that sets the pace lies beyond the last eigenvalue wanted.
_GUARDS = 8
# Share of the tolerance that the recurrence is held to: the rest is for the rounding of the products it keeps.
_OWN_SHARE = 0.9
# A restart keeps twice the vectors sought, a quarter of the basis: where eigenvalues crowd, as those of a single
# layer's `what` do near 0, that took a fifth to three fifths of the steps of a restart and basis of 1 and 6 times.
_KEPT = 2
_BASIS = 8


@dataclasses.dataclass(frozen=True)
class EigenSolver(Solver):
    """Leading eigenpairs of A x = mu B x, mu = 1 - lambda.

    Small problems go to LAPACK in float64. Larger ones are solved by a thick-restart block Krylov method: the
    Rayleigh-Ritz vectors of a growing basis, extended by the residuals of those not yet converged, restarted from the
    best of them (Wu and Simon 2000, SIAM J. Matrix Anal. Appl. 22; with residuals as new directions it is Davidson's
    method, which also covers B, Knyazev 2001, SIAM J. Sci. Comput. 23). Memory: two blocks of `basis_size` vectors.

    Args:
        tolerance: Bound on the residual ||A x - mu B x|| of unit vectors, checked by `solve` also where the problem was
            solved densely; mu lies in [-1, 1].
        max_steps: Rayleigh-Ritz steps at most, two block multiplications each.
        dense_below: Problems of fewer nodes are solved densely.
        basis_size: Vectors of the basis before a restart; None takes 8 for each eigenvector sought.
    """

    tolerance: float = 1e-5
    max_steps: int = 500
    dense_below: int = 400
    basis_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        keep_ints(self, "max_steps", *([] if self.basis_size is None else ["basis_size"]))
        keep_ints(self, "dense_below", least=0)
        keep_numbers(self, tolerance=(0, math.inf))

    def find(self, problem: JointProblem, num_eigenvectors: int, seed: int) -> Solution:
        """Find the leading eigenvectors, densely or by Krylov steps, whichever is cheaper.

        Args:
            problem: The problem.
            num_eigenvectors: How many.
            seed: Seed of the start vectors.

        Returns:
            The eigenvectors, leading one first.
        """
        if problem.num_nodes < max(self.dense_below, 4 * (num_eigenvectors + _GUARDS)):
            return _solve_dense(problem, num_eigenvectors)
        return self._solve_krylov(problem, num_eigenvectors, seed)

    def _solve_krylov(self, problem: JointProblem, wanted: int, seed: int) -> Solution:
        kept = wanted + _GUARDS
        capacity = min(max(self.basis_size or _BASIS * kept, (_KEPT + 2) * kept), problem.num_nodes)
        basis = _Basis(problem, capacity)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(problem.num_nodes, kept, generator=generator)
        start[:, 0] = 1  # The trivial eigenvector is nearly constant.
        basis.extend(start.to(problem.affinity.device))
        for step in range(1, self.max_steps + 1):
            ritz_values, ritz_coefficients = basis.rayleigh_ritz(_KEPT * kept)
            values, coefficients = ritz_values[:kept], ritz_coefficients[:, :kept]
            residuals = basis.residuals(values, coefficients)
            norms = residuals.norm(dim=0)
            is_open = norms > _OWN_SHARE * self.tolerance
            if not is_open[:wanted].any():
                return Solution(values[:wanted], basis.combine(coefficients[:, :wanted]), step)
            if basis.size + 2 * int(is_open.sum()) > capacity:
                basis.restart(ritz_values, ritz_coefficients)
            basis.extend(residuals[:, is_open] / norms[is_open])
            basis.extend(basis.last_products())  # A Krylov step: cheaper than the next Rayleigh-Ritz step.
        values, coefficients = basis.rayleigh_ritz(wanted)
        return Solution(values, basis.combine(coefficients), self.max_steps)


class _Basis:
    """A basis V, orthonormal under B, with A V and B V beside it, so that every product with A is made once."""

    def __init__(self, problem: JointProblem, capacity: int) -> None:
        self._affinity = problem.affinity
        self._mass = problem.mass
        self.size = 0
        self._last = slice(0, 0)
        shape = (problem.num_nodes, capacity)
        self._vectors, self._products = (torch.empty(shape, device=problem.affinity.device) for _ in range(2))
        self._massed = self._vectors if problem.mass_is_identity else torch.empty_like(self._vectors)
        self._projected = torch.zeros(capacity, capacity, dtype=torch.float64)

    def extend(self, block: Vectors) -> None:
        """Append the part of a block that is new, made orthonormal."""
        for _ in range(2):  # Twice is enough for orthogonality to working precision.
            block = block - self._vectors[:, : self.size] @ (self._massed[:, : self.size].T @ block)
            block = self._orthonormal(block)
        old, new = slice(0, self.size), slice(self.size, self.size + block.shape[1])
        self._last = new
        self.size = new.stop
        self._vectors[:, new] = block
        self._products[:, new] = self._affinity.matmul(block)
        if self._massed is not self._vectors:
            self._massed[:, new] = self._mass.matmul(block)
        column = (self._vectors[:, : self.size].T @ self._products[:, new]).double().cpu()
        self._projected[: self.size, new] = column
        self._projected[new, old] = column[old].T

    def last_products(self) -> Vectors:
        """Return A times the block appended last."""
        return self._products[:, self._last].clone()

    def rayleigh_ritz(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the largest Ritz values, descending, and the coefficients of their vectors."""
        projected = self._projected[: self.size, : self.size]
        values, coefficients = torch.linalg.eigh((projected + projected.T) / 2)
        device = self._vectors.device
        return values.flip(0)[:count].float().to(device), coefficients.flip(1)[:, :count].float().to(device)

    def residuals(self, values: Tensor, coefficients: Tensor) -> Vectors:
        """Return A x - mu B x of the Ritz pairs."""
        used = slice(0, self.size)
        return self._products[:, used] @ coefficients - self._massed[:, used] @ (coefficients * values)

    def combine(self, coefficients: Tensor) -> Vectors:
        """Return the vectors with the given coefficients."""
        return self._vectors[:, : self.size] @ coefficients

    def restart(self, values: Tensor, coefficients: Tensor) -> None:
        """Keep the span of the Ritz vectors only."""
        count = coefficients.shape[1]
        for memory in {id(part): part for part in (self._vectors, self._products, self._massed)}.values():
            memory[:, :count] = memory[:, : self.size] @ coefficients
        self.size = count
        self._projected.zero_()
        self._projected[:count, :count] = torch.diag(values.double().cpu())

    def _orthonormal(self, block: Tensor) -> Tensor:
        """Orthonormalize under B by the eigenvectors of the Gram matrix; dependent directions fall out.

        Stathopoulos and Wu (2002), A block orthogonalization procedure with constant synchronization requirements.

        Returns:
            A block that spans the same, of at most as many columns.
        """
        gram = (block.T @ self._mass.matmul(block)).double()
        scale = gram.diagonal().clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
        values, rotation = torch.linalg.eigh((gram * scale * scale[:, None]).cpu())
        kept = values > values[-1] * _DEPENDENT
        transform = scale[:, None] * (rotation[:, kept] * values[kept].rsqrt()).to(scale.device)
        return block @ transform.float()


def _solve_dense(problem: JointProblem, num_eigenvectors: int) -> Solution:
    affinity = problem.affinity.to_dense().double().cpu().numpy()
    mass = None if problem.mass_is_identity else problem.mass.to_dense().double().cpu().numpy()
    largest = (problem.num_nodes - num_eigenvectors, problem.num_nodes - 1)
    values, vectors = scipy.linalg.eigh(affinity, mass, subset_by_index=largest)
    device = problem.affinity.device
    return Solution(
        torch.from_numpy(values[::-1].copy()).float().to(device),
        torch.from_numpy(vectors[:, ::-1].copy()).float().to(device),
        steps=1,
    )
