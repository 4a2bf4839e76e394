"""The function `solve` and the solvers that it accepts."""

from hf_spectral.solvers.base import Solver, solve
from hf_spectral.solvers.dataset_gradient import DatasetGradientSolver
from hf_spectral.solvers.eigen import EigenSolver
from hf_spectral.solvers.gradient import GradientSolver

__all__ = ["DatasetGradientSolver", "EigenSolver", "GradientSolver", "Solver", "solve"]
