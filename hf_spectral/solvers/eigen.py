"""The exact eigensolver, dense for small problems and a Krylov method for larger ones."""

from __future__ import annotations

import dataclasses
import math

import scipy.linalg
import torch

from hf_spectral.checks import keep_ints, keep_numbers
from hf_spectral.krylov import leading_eigenpairs, random_block
from hf_spectral.problem import JointProblem
from hf_spectral.solvers.base import Solution, Solver

# Vectors sought beyond those wanted, so that the gap that sets the pace lies beyond the last eigenvalue wanted.
_GUARDS = 8
# Share of the tolerance that the recurrence is held to: the rest is for the rounding of the products it keeps.
_OWN_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class EigenSolver(Solver):
    """Leading eigenpairs of A x = mu B x, mu = 1 - lambda.

    Small problems are solved by LAPACK in float64, larger ones in float32 by a thick-restart block Krylov method,
    `krylov.leading_eigenpairs`. Memory: two blocks of `basis_size` vectors.

    Args:
        tolerance: Bound on the residual ||A x - mu B x|| of unit vectors, checked by `solve`, for dense
            solutions too; mu lies in [-1, 1].
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
        device = problem.affinity.device
        start = random_block(problem.num_nodes, wanted + _GUARDS, seed, torch.float32, device)
        start[:, 0] = 1  # The trivial eigenvector is nearly constant.
        pairs = leading_eigenpairs(
            problem.affinity.matmul,
            start,
            wanted,
            tolerance=_OWN_SHARE * self.tolerance,
            max_steps=self.max_steps,
            mass=None if problem.mass_is_identity else problem.mass.matmul,
            basis_size=self.basis_size,
        )
        return Solution(pairs.values, pairs.vectors, pairs.steps)


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
