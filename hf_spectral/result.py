"""The result of a solver with its residuals, and its safetensors file."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from hf_spectral.atomic import replacing
from hf_spectral.checks import is_int, is_number
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid
from hf_spectral.kept import Kept, shown_eigenvalues
from hf_spectral.tensor_files import parse_json, read_header, read_tensors

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
    """Return the eigenvalues of the normalized Laplacian, which lie between 0 and 2 or are wrong.

    Args:
        quotients: Rayleigh quotients 1 - lambda of the affinity, one per eigenvector.

    Returns:
        The eigenvalues lambda, float32, on the CPU.

    Raises:
        SpectralError: If one lies outside by more than rounding explains, or is NaN: no eigenvector belongs to it.
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


@dataclasses.dataclass(frozen=True, repr=False)
class SpectralResult(Kept):
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
        path = Path(path)
        file = path if path.suffix == ".safetensors" else path / RESULT_NAME
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
            **({"notes": list(self.notes)} if self.notes else {}),
        }
        with replacing(file) as partial:
            partial.write_bytes(save(tensors, metadata={"hf_spectral": json.dumps(described)}))
        return path

    @classmethod
    def _read(cls, path: Path) -> SpectralResult:
        return cls(**_parsed(path if path.is_file() else path / RESULT_NAME))


def _parsed(path: Path) -> dict[str, Any]:
    header, _ = read_header(path)
    described = parse_json(header["__metadata__"]["hf_spectral"])
    if described["format"] != _FORMAT:
        raise ValueError(f"format {str(described['format'])[:60]!r}")
    shape = header["eigenvectors"]["shape"]
    if len(shape) != 3 or not all(_is_count(length) for length in shape):
        raise ValueError(f"eigenvectors of shape {str(shape)[:60]}")
    forms = dict.fromkeys(("eigenvalues", "residuals"), (torch.float32, (shape[0],)))
    tensors, _ = read_tensors(path, {**forms, "eigenvectors": (torch.float32, tuple(shape))})
    config = SpectralConfig.from_dict(described["config"])
    if config.num_eigenvectors != shape[0]:
        raise ValueError(f"{shape[0]} eigenvectors where the config has {str(config.num_eigenvectors)[:60]}")
    layers, notes = described["layers"], described.get("notes", [])
    for name, texts in (("layers", layers), ("notes", notes)):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} that are no texts")
    weights = described["layer_weights"]
    if not isinstance(weights, list) or len(weights) != len(layers) or not all(map(_is_weight, weights)):
        raise ValueError("layer weights that are not one per layer")
    if not isinstance(described["solver"], dict):
        raise ValueError("a solver that is no mapping")
    for name in ("steps", "num_prefix"):
        if described[name] is True or not _is_count(described[name] + 1):
            raise ValueError(f"{name} of {str(described[name])[:60]}")
    return {
        **tensors,
        "status": SolveStatus(described["status"]),
        "steps": described["steps"],
        "grid": TokenGrid(shape[1], shape[2], described["num_prefix"]),
        "layers": tuple(layers),
        "layer_weights": tuple(map(float, weights)),
        "config": config,
        "solver": described["solver"],
        "notes": tuple(notes),
    }


def _is_count(value: Any) -> bool:
    return is_int(value) and 1 <= value < 2**31


def _is_weight(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1
