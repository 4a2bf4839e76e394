"""The optimization of the paper, the reference that the exact solver is compared with."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_spectral.checks import keep_ints, keep_numbers
from hf_spectral.operators import AffinityOperator
from hf_spectral.problem import JointProblem
from hf_spectral.solvers.base import Solution, Solver


@dataclasses.dataclass(frozen=True)
class GradientSolver(Solver):
    """Gradient descent on a small convolutional network whose softmax output spans the eigenvectors.

    Minimizes, with X the output under columns of unit norm (x^T B x = 1),

        weight * mean |diag(X^T A X) - 1| + weight * mean offdiag(X^T B X)^2,

    the objective and the settings of Zhang, Yunis and Maire (CVPR 2024, section 3 and their public code) for one image.
    Every diagonal entry is at most 1, so that the first term is linear in A and layers may be averaged before. The
    eigenvectors are read out by a Rayleigh-Ritz step in the span of X.

    Args:
        max_steps: Evaluations of the objective, 2,000 in the paper.
        accumulation_steps: Evaluations whose gradients are added up before the network is updated. The paper draws new
            diffusion noise for each; on a fixed problem they are all the same, and `max_steps=100` with
            `accumulation_steps=1` gives the same result 20 times faster.
        learning_rate: Of Adam.
        hidden_channels: Width of the network and of its free input map.
        weight: Factor on both terms.
        progress: Show a progress bar.
    """

    max_steps: int = 2000
    accumulation_steps: int = 20
    learning_rate: float = 2e-3
    hidden_channels: int = 128
    weight: float = 2.0
    progress: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        keep_ints(self, "max_steps", "accumulation_steps", "hidden_channels")
        keep_numbers(self, learning_rate=(0, math.inf), weight=(0, math.inf))

    def find(self, problem: JointProblem, num_eigenvectors: int, seed: int) -> Solution:
        """Optimize, then read the eigenvectors out of the span.

        Args:
            problem: The problem; a dense or low-rank affinity is multiplied once per step.
            num_eigenvectors: Channels of the softmax.
            seed: Seed of the network and its input.

        Returns:
            Ritz vectors of the span found. The steps are the stopping rule and no tolerance is promised: the status of
            the result is `NOT_CHECKED`.
        """
        device = problem.affinity.device
        network = _SpanNetwork(self.hidden_channels, num_eigenvectors, problem.grid.height, problem.grid.width, seed)
        network = network.to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        with torch.enable_grad(), tqdm(total=self.max_steps, disable=not self.progress, desc="GradientSolver") as bar:
            for step in range(1, self.max_steps + 1):
                vectors = _unit_columns(network(), problem)
                masses = SymmetricProduct.apply(vectors, problem.mass)
                loss = self.weight * objective(vectors, masses, problem.affinity)
                loss.backward()
                if step % self.accumulation_steps == 0 or step == self.max_steps:
                    optimizer.step()
                    optimizer.zero_grad()
                bar.update()
        values, vectors = _rayleigh_ritz(problem, network().detach())
        return Solution(values, vectors, self.max_steps)


class SymmetricProduct(torch.autograd.Function):
    """Multiplication by a symmetric operator, which is its own transpose."""

    @staticmethod
    def forward(ctx, vectors, operator):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        """Multiply a block of vectors."""
        ctx.operator = operator
        return operator.matmul(vectors)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        """Multiply the gradient."""
        return ctx.operator.matmul(gradient), None


def objective(
    vectors: Float[Tensor, "nodes columns"],
    masses: Float[Tensor, "nodes columns"],
    affinity: AffinityOperator,
    num_layers: int = 1,
) -> Float[Tensor, ""]:
    """Return mean |diag(X^T A X) - n| + n mean offdiag(X^T B X)^2: the objective of the paper, times n.

    Args:
        vectors: X, columns of unit norm.
        masses: B X.
        affinity: A, the sum of the normalized affinities of n layers.
        num_layers: n. Every entry of the diagonal is at most n, so that the absolute values of several layers add up.

    Returns:
        A number of at least 0, with its gradient.
    """
    quotients = (vectors * SymmetricProduct.apply(vectors, affinity)).sum(dim=0)
    overlaps = vectors.T @ masses
    off_diagonal = overlaps - torch.diag(overlaps.diagonal())
    return (quotients - num_layers).abs().mean() + num_layers * off_diagonal.square().mean()


class _SpanNetwork(nn.Module):
    """Three convolutions on a free input map, softmax over channels.

    Parameters are float32 and drawn from the seed as torch initializes convolutions, without torch's own generators:
    these belong to the program, whose other threads may use them.
    """

    def __init__(self, hidden_channels: int, num_eigenvectors: int, height: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (1, hidden_channels, height, width)
        self.seed_map = nn.Parameter(torch.randn(shape, dtype=torch.float32, generator=generator))
        layers: list[nn.Module] = []
        for channels in (hidden_channels, hidden_channels, num_eigenvectors):
            convolution = nn.utils.skip_init(nn.Conv2d, hidden_channels, channels, 3, padding=1, dtype=torch.float32)
            for parameter in (convolution.weight, convolution.bias):
                bound = (9 * hidden_channels) ** -0.5
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            layers += [convolution, nn.BatchNorm2d(channels, dtype=torch.float32), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self) -> Float[Tensor, "nodes eigenvectors"]:
        return self.layers(self.seed_map).softmax(dim=1)[0].flatten(1).T


def _unit_columns(vectors: Tensor, problem: JointProblem) -> Tensor:
    if problem.mass_is_identity:
        return nn.functional.normalize(vectors, dim=0)
    squares = (vectors * SymmetricProduct.apply(vectors, problem.mass)).sum(dim=0)
    return vectors / squares.sqrt()


def _rayleigh_ritz(problem: JointProblem, span: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Ritz pairs of a span under A x = mu B x, in float64, largest first."""
    span = nn.functional.normalize(span, dim=0)
    mass = (span.T @ problem.mass.matmul(span)).cpu().double()
    affinity = (span.T @ problem.affinity.matmul(span)).cpu().double()
    spread, rotation = torch.linalg.eigh((mass + mass.T) / 2)
    whiten = rotation * spread.clamp_min(spread[-1] * torch.finfo(torch.float32).eps).rsqrt()
    values, vectors = torch.linalg.eigh(whiten.T @ ((affinity + affinity.T) / 2) @ whiten)
    combination = (whiten @ vectors).flip(1).to(span)
    return values.flip(0).to(span), span @ combination
