"""The function `solve` and the solvers that it accepts."""

from hf_spectral.solvers.base import EigenSolver, Solver, solve
from hf_spectral.solvers.dataset_gradient import DatasetGradientSolver
from hf_spectral.solvers.gradient import GradientSolver

__all__ = ["DatasetGradientSolver", "EigenSolver", "GradientSolver", "Solver", "solve"]
