"""The function `solve(problem, solver)`. A solver is a frozen dataclass whose fields are its configuration."""

from __future__ import annotations

import abc
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.errors import NotConvergedError, SpectralError
from hf_spectral.problem import JointProblem
from hf_spectral.result import SolveStatus, SpectralResult, laplacian_eigenvalues
from hf_spectral.torch_state import plain_torch


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
    if solver is None:
        from hf_spectral.solvers.eigen import EigenSolver

        solver = EigenSolver()
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


def fix_signs(vectors: Float[Tensor, "nodes eigenvectors"]) -> Float[Tensor, "nodes eigenvectors"]:
    """Make the entry of largest magnitude of every column positive.

    Args:
        vectors: One vector per column.

    Returns:
        The columns, each times +1 or -1.
    """
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)


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
    return (problem.affinity.matmul(vectors) - problem.mass.matmul(vectors) * values).norm(dim=0)
