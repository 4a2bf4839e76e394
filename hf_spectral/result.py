"""The result of a solver with its residuals, and its safetensors file."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.checks import is_int, is_number
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid
from hf_spectral.kept import Kept, Published, shown_eigenvalues
from hf_spectral.tensor_files import read_described, read_tensors, write_described

#: Name of the file of a result in a repository of the Hub.
RESULT_NAME = "result.safetensors"
_FORMAT = "hf_spectral.SpectralResult/1"
# Eigenvalues of sums in float32 leave the interval from 0 to 2 by less than this.
_ROUNDING = 1e-4


class SolveStatus(str, enum.Enum):
    """How a solver ended, and whether the residuals were checked.

    `CONVERGED`: every residual was computed and lies within the solver's tolerance. `MAX_STEPS`: the solver stopped
    before that. `NOT_CHECKED`: there is no tolerance to compare with, as for gradient descent and for what a basis
    gives on an image.
    """

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    NOT_CHECKED = "not_checked"

    @classmethod
    def of(cls, residuals: Float[Tensor, " eigenvectors"], tolerance: float | None) -> SolveStatus:
        """Compare residuals with a tolerance.

        Args:
            residuals: Norms, at least 0; NaN is not within any tolerance.
            tolerance: Largest norm allowed; None if the solver has no such bound.

        Returns:
            The status.
        """
        if tolerance is None:
            return cls.NOT_CHECKED
        return cls.CONVERGED if bool((residuals <= tolerance).all()) else cls.MAX_STEPS

    @property
    def remedy(self) -> str:
        """One sentence that explains the status and the next step."""
        return _REMEDIES[self]


_REMEDIES = {
    SolveStatus.CONVERGED: "The residuals are within the tolerance; nothing is to be done.",
    SolveStatus.MAX_STEPS: (
        "The solver stopped before the residuals fell below the tolerance: raise `max_steps` or `tolerance` (float32 "
        "reaches about 1e-6), or ask for fewer eigenvectors."
    ),
    SolveStatus.NOT_CHECKED: (
        "No residual was compared with a tolerance: read `residuals`, which say how far each vector is from an "
        "eigenvector, or solve by `EigenSolver`, which checks them."
    ),
}


def laplacian_eigenvalues(quotients: Float[Tensor, " eigenvectors"]) -> Float[Tensor, " eigenvectors"]:
    """Return the eigenvalues of the normalized Laplacian, after a check that they lie between 0 and 2.

    Args:
        quotients: Rayleigh quotients 1 - lambda of the affinity, one per eigenvector.

    Returns:
        The eigenvalues lambda, float32, on the CPU.

    Raises:
        SpectralError: If one lies outside by more than a rounding error, or is NaN.
    """
    eigenvalues = (1 - quotients).float().cpu()
    inside = (eigenvalues >= -_ROUNDING) & (eigenvalues <= 2 + _ROUNDING)
    if not bool(inside.all()):
        raise SpectralError(
            "eigenvalues",
            expected="numbers from 0 to 2, as a normalized Laplacian has them",
            got=f"{float(eigenvalues[~inside][0]):.6g}",
            fix="Look for affinities below 0, and for a backbone or pictures that differ from one pass to the next",
        )
    return eigenvalues


def _is_count(value: Any) -> bool:
    return is_int(value) and 0 <= value < 2**31


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# For each value in a file, whether it is valid. Notes are missing in a file without notes.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value == _FORMAT,
    "steps": _is_count,
    "num_prefix": _is_count,
    "layers": _are_texts,
    "layer_weights": lambda value: isinstance(value, list) and all(is_number(one) and 0 <= one <= 1 for one in value),
    "solver": lambda value: isinstance(value, dict),
    "notes": lambda value: value is None or _are_texts(value),
}


@dataclasses.dataclass(frozen=True, repr=False)
class SpectralResult(Kept, Published):
    """Eigenvectors of one joint problem.

    Args:
        eigenvalues: Of the normalized Laplacian, ascending, the trivial one at index 0.
        eigenvectors: One map per eigenvector, of unit norm; the entry of largest magnitude is positive.
        residuals: ||A x - (1 - lambda) B x|| of each eigenvector.
        status: Whether the residuals were checked, and met the tolerance.
        steps: Steps the solver took.
        grid: The map the eigenvectors lie on.
        layers: Names of the layers that took part.
        layer_weights: Weight of each of them, together 1.
        config: Settings of the problem.
        solver: Name of the solver with its settings.
        notes: Sentences about how the picture was read, e.g. that it was stretched.
    """

    eigenvalues: Float[Tensor, " eigenvectors"]
    eigenvectors: Float[Tensor, "eigenvectors height width"]
    residuals: Float[Tensor, " eigenvectors"]
    status: SolveStatus
    steps: int
    grid: TokenGrid
    layers: tuple[str, ...]
    layer_weights: tuple[float, ...]
    config: SpectralConfig
    solver: dict[str, Any]
    notes: tuple[str, ...] = ()

    _files = (RESULT_NAME,)
    _argument = "source"
    _expected = "a file that SpectralResult.save_pretrained wrote"
    _fix = "Make it again by `analyze`"

    def _facts(self) -> dict[str, str]:
        return {
            "pathway": self.config.pathway,
            "eigenvectors": f"{len(self.eigenvalues)} on a grid of {self.grid.height} x {self.grid.width} tokens",
            "eigenvalues": shown_eigenvalues(self.eigenvalues),
            "layers": str(len(self.layers)),
            "status": f"{self.status.value}, largest residual {float(self.residuals.max()):.1e}",
            **({"notes": " ".join(self.notes)} if self.notes else {}),
        }

    def save_pretrained(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as one safetensors file. An interrupted call leaves no partial file.

        Example:
            >>> result.save_pretrained("photo.safetensors")
            >>> SpectralResult.from_pretrained("photo.safetensors")

        Args:
            path: A folder, which then holds `result.safetensors`; or a file, whose name ends in `.safetensors`. Missing
                folders are created.

        Returns:
            The path given, which `from_pretrained` reads.
        """
        names = ("eigenvalues", "eigenvectors", "residuals")
        described = {
            "format": _FORMAT,
            "status": self.status.value,
            "steps": self.steps,
            "num_prefix": self.grid.num_prefix,
            "layers": list(self.layers),
            "layer_weights": list(self.layer_weights),
            "config": self.config.to_dict(),
            "solver": self.solver,
            **({"notes": list(self.notes)} if self.notes else {}),
        }
        return write_described(path, RESULT_NAME, described, {name: getattr(self, name) for name in names})

    @classmethod
    def _read(cls, path: Path) -> SpectralResult:
        header, described = read_described(path, _CHECKS)
        count, height, width = shape = header["eigenvectors"]["shape"]
        forms = dict.fromkeys(("eigenvalues", "residuals"), (torch.float32, (count,)))
        tensors, _ = read_tensors(path, {**forms, "eigenvectors": (torch.float32, tuple(shape))})
        config, layers = SpectralConfig.from_dict(described["config"]), tuple(described["layers"])
        if config.num_eigenvectors != count or len(described["layer_weights"]) != len(layers):
            raise ValueError("tensors, layers and settings that do not fit each other")
        return cls(
            **tensors,
            status=SolveStatus(described["status"]),
            steps=described["steps"],
            grid=TokenGrid(height, width, described["num_prefix"]),
            layers=layers,
            layer_weights=tuple(map(float, described["layer_weights"])),
            config=config,
            solver=described["solver"],
            notes=tuple(described.get("notes") or ()),
        )
