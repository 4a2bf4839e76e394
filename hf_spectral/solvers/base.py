"""The function `solve(problem, solver)`, and the exact solver, dense for small problems and Krylov for larger ones.

A solver is a frozen dataclass whose fields are its configuration.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.checks import keep_ints, keep_numbers
from hf_spectral.errors import NotConvergedError, SpectralError
from hf_spectral.krylov import fix_signs, leading_eigenpairs, random_block
from hf_spectral.problem import JointProblem
from hf_spectral.result import SolveStatus, SpectralResult, laplacian_eigenvalues
from hf_spectral.torch_state import plain_torch

# Vectors sought beyond those wanted, so that the gap that sets the pace lies beyond the last eigenvalue wanted.
_GUARDS = 8
# Share of the tolerance that the recurrence is held to: the rest is for the rounding of the products it keeps.
_OWN_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Solution:
    """What `Solver.find` returns.

    Args:
        values: Rayleigh quotients 1 - lambda, descending.
        vectors: One vector per column.
        steps: Steps taken.
    """

    values: Float[Tensor, " eigenvectors"]
    vectors: Float[Tensor, "nodes eigenvectors"]
    steps: int


class Solver(abc.ABC):
    """Finds the leading eigenvectors of a joint problem.

    A solver that guarantees small residuals sets their bound as `tolerance`, and `solve` checks it.
    """

    tolerance: float | None = None

    @abc.abstractmethod
    def find(self, problem: JointProblem, num_eigenvectors: int, seed: int) -> Solution:
        """Find the leading eigenvectors.

        Args:
            problem: The problem.
            num_eigenvectors: How many, at most the number of nodes.
            seed: Seed of random starts.

        Returns:
            The eigenvectors, leading one first.
        """


@plain_torch()
def solve(problem: JointProblem, solver: Solver | None = None, *, require_convergence: bool = True) -> SpectralResult:
    """Solve a joint problem for `problem.config.num_eigenvectors` eigenvectors.

    Args:
        problem: The problem to solve.
        solver: The solver; None takes `EigenSolver()`.
        require_convergence: Raise if a residual exceeds the solver's tolerance; False returns the result with
            the status `MAX_STEPS`. Without a tolerance nothing is raised and the status is `NOT_CHECKED`.

    Returns:
        Eigenvalues, eigenvectors and residuals, on the CPU. The sign of an eigenvector makes its entry of largest
        magnitude positive.

    Raises:
        SpectralError: If more eigenvectors are asked for than there are nodes, or an eigenvalue lies outside [0, 2].
        NotConvergedError: If a residual exceeds the solver's tolerance and `require_convergence` holds.
    """
    solver = EigenSolver() if solver is None else solver
    count = problem.config.num_eigenvectors
    if count > problem.num_nodes:
        raise SpectralError(
            "num_eigenvectors",
            expected=f"at most the number of tokens, {problem.grid.height} x {problem.grid.width} = "
            f"{problem.num_nodes}",
            got=count,
            fix="Ask for fewer, or analyze at a higher `resolution`",
        )
    solution = solver.find(problem, count, problem.config.seed)
    vectors = fix_signs(torch.nn.functional.normalize(solution.vectors, dim=0))
    residuals = residual_norms(problem, solution.values, vectors)
    status = SolveStatus.of(residuals, solver.tolerance)
    if require_convergence and status is SolveStatus.MAX_STEPS:
        raise NotConvergedError(
            f"{type(solver).__name__} stopped after {solution.steps} steps with a residual of {residuals.max():.1e}. "
            f"{status.remedy}"
        )
    return SpectralResult(
        eigenvalues=laplacian_eigenvalues(solution.values),
        eigenvectors=problem.grid.to_map(vectors.float()).cpu(),
        residuals=residuals.float().cpu(),
        status=status,
        steps=solution.steps,
        grid=problem.grid,
        layers=problem.layers,
        layer_weights=problem.layer_weights,
        config=problem.config,
        solver={"name": type(solver).__name__, **dataclasses.asdict(solver)},  # type: ignore[call-overload]
    )


def residual_norms(
    problem: JointProblem, values: Float[Tensor, " eigenvectors"], vectors: Float[Tensor, "nodes eigenvectors"]
) -> Float[Tensor, " eigenvectors"]:
    """Return ||A x - (1 - lambda) B x|| of unit vectors: how far each is from an eigenvector.

    Args:
        problem: Gives A and B.
        values: Rayleigh quotients 1 - lambda.
        vectors: One unit vector per column.

    Returns:
        Norms of at least 0.
    """
    residual = problem.affinity.matmul(vectors) - problem.mass.matmul(vectors) * values
    return torch.linalg.vector_norm(residual, dim=0)


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
    affinity = problem.affinity.to_dense().cpu().double().numpy()
    mass = None if problem.mass_is_identity else problem.mass.to_dense().cpu().double().numpy()
    largest = (problem.num_nodes - num_eigenvectors, problem.num_nodes - 1)
    values, vectors = scipy.linalg.eigh(affinity, mass, subset_by_index=largest)
    device = problem.affinity.device
    return Solution(
        torch.from_numpy(values[::-1].copy()).float().to(device),
        torch.from_numpy(vectors[:, ::-1].copy()).float().to(device),
        steps=1,
    )
