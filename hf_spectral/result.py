"""What a solver found, and how well: one object, one safetensors file."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hf_spectral.atomic import replacing
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid

_FORMAT = "hf_spectral.SpectralResult/1"


class SolveStatus(str, enum.Enum):
    """How a solver ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"

    @property
    def remedy(self) -> str:
        """One sentence: what it means and what to do about it."""
        return _REMEDIES[self]


_REMEDIES = {
    SolveStatus.CONVERGED: "The residuals are within the tolerance; nothing is to be done.",
    SolveStatus.MAX_STEPS: (
        "The solver used up its steps before the residuals fell below the tolerance: raise `max_steps` or `tolerance`, "
        "or ask for fewer eigenvectors."
    ),
}


@dataclasses.dataclass(frozen=True)
class SpectralResult:
    """Eigenvectors of one joint problem.

    Args:
        eigenvalues: Of the normalized Laplacian, ascending, the trivial one at index 0.
        eigenvectors: One map an eigenvector, of unit norm; the entry of largest magnitude is positive.
        residuals: ||A x - (1 - lambda) B x|| of each eigenvector.
        status: How the solver ended.
        steps: Steps the solver took.
        grid: The map the eigenvectors lie on.
        layers: Names of the layers that took part.
        layer_weights: Weight of each of them, together 1.
        config: Settings of the problem.
        solver: Name of the solver with its settings.
    """

    eigenvalues: Float[Tensor, eigenvectors]
    eigenvectors: Float[Tensor, "eigenvectors height width"]
    residuals: Float[Tensor, eigenvectors]
    status: SolveStatus
    steps: int
    grid: TokenGrid
    layers: tuple[str, ...]
    layer_weights: tuple[float, ...]
    config: SpectralConfig
    solver: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as one safetensors file; it appears whole or not at all.

        Args:
            path: Where to write; folders on the way are made.

        Returns:
            The path written.
        """
        path = Path(path)
        tensors = {
            "eigenvalues": self.eigenvalues.contiguous(),
            "eigenvectors": self.eigenvectors.contiguous(),
            "residuals": self.residuals.contiguous(),
        }
        described = {
            "format": _FORMAT,
            "status": self.status.value,
            "steps": self.steps,
            "num_prefix": self.grid.num_prefix,
            "layers": list(self.layers),
            "layer_weights": list(self.layer_weights),
            "config": self.config.to_dict(),
            "solver": self.solver,
        }
        with replacing(path) as partial:
            partial.write_bytes(save(tensors, metadata={"hf_spectral": json.dumps(described)}))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SpectralResult:
        """Read what `save` wrote.

        Args:
            path: A safetensors file.

        Returns:
            The result, on the CPU.

        Raises:
            SpectralError: If the file is not one that `save` wrote, or its parts do not fit each other.
        """
        try:
            return cls(**_parsed(path))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise SpectralError(
                "path", expected="a file that SpectralResult.save wrote", got=error, fix="Make it again by `analyze`"
            ) from error


def _parsed(path: str | os.PathLike[str]) -> dict[str, Any]:
    with safe_open(str(path), framework="pt") as file:
        described = json.loads((file.metadata() or {}).get("hf_spectral", "{}"))
        tensors = {name: file.get_tensor(name) for name in ("eigenvalues", "eigenvectors", "residuals")}
    if described.get("format") != _FORMAT:
        raise ValueError(f"format {described.get('format')!r}")
    count, height, width = tensors["eigenvectors"].shape
    if not tensors["eigenvalues"].shape == tensors["residuals"].shape == (count,):
        raise ValueError("tensors whose shapes do not fit each other")
    layers = tuple(described["layers"])
    # Files of before 0.1.0 do not say it: all layers weighed alike.
    weights = described.get("layer_weights", [1 / len(layers)] * len(layers))
    if len(weights) != len(layers):
        raise ValueError(f"{len(weights)} weights of {len(layers)} layers")
    return {
        **tensors,
        "status": SolveStatus(described["status"]),
        "steps": int(described["steps"]),
        "grid": TokenGrid(height, width, described["num_prefix"]),
        "layers": layers,
        "layer_weights": tuple(float(weight) for weight in weights),
        "config": SpectralConfig.from_dict(described["config"]),
        "solver": dict(described["solver"]),
    }
