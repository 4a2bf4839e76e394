"""The what and where pathways of any frozen vision backbone, by one spectral problem over all its attention layers.

Importing the package registers the task `spectral-pathways` with transformers: `pipeline("spectral-pathways")`.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hf_spectral.affinities import Attention, Cosine, Exponential, NearestNeighbors
from hf_spectral.basis import BasisAccumulator, SpectralBasis
from hf_spectral.capture import capture_attention, vision_tower
from hf_spectral.config import SpectralConfig
from hf_spectral.dataset import FitReport, fit, transform
from hf_spectral.errors import HFSpectralError, NotConvergedError, SpectralError, UnsupportedBackboneError
from hf_spectral.grid import TokenGrid
from hf_spectral.kept import Published
from hf_spectral.pipelines import SpectralPathwaysPipeline, pipeline, read_image, register
from hf_spectral.problem import JointProblem, build_problem
from hf_spectral.records import AttentionRecord, Capture
from hf_spectral.report import LayerReport, layer_report
from hf_spectral.result import SolveStatus, SpectralResult
from hf_spectral.segmentation import Segmentation, instances, segment
from hf_spectral.solvers import EigenSolver, GradientSolver, solve
from hf_spectral.token_affinities import TokenAffinity, token_affinity
from hf_spectral.verbosity import follow_transformers
from hf_spectral.version import __version__ as __version__

if TYPE_CHECKING:
    from hf_spectral.hub import CardDetails, push_space, push_to_hub
    from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

__all__ = [
    "Attention",
    "AttentionRecord",
    "BasisAccumulator",
    "Capture",
    "CardDetails",
    "Cosine",
    "EigenSolver",
    "Exponential",
    "FitReport",
    "GradientSolver",
    "HFSpectralError",
    "JointProblem",
    "LayerReport",
    "NearestNeighbors",
    "NotConvergedError",
    "Segmentation",
    "SolveStatus",
    "SpectralBasis",
    "SpectralConfig",
    "SpectralDiffusionPipeline",
    "SpectralError",
    "SpectralPathwaysPipeline",
    "SpectralResult",
    "TokenAffinity",
    "TokenGrid",
    "UnsupportedBackboneError",
    "build_problem",
    "capture_attention",
    "fit",
    "instances",
    "layer_report",
    "pipeline",
    "push_space",
    "push_to_hub",
    "read_image",
    "segment",
    "solve",
    "token_affinity",
    "transform",
    "vision_tower",
]

if find_spec("diffusers") is None:
    __all__.remove("SpectralDiffusionPipeline")  # Else `from hf_spectral import *` would need the extra.

follow_transformers()
register()


def _hub(name: str) -> Any:
    from hf_spectral import hub

    return getattr(hub, name)


Published._hub = _hub


def __dir__() -> list[str]:
    """Return the public names, those among them that are imported when they are asked for."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import what few need when it is asked for: diffusers takes seconds, and pushing brings the cards with it."""
    if name in ("CardDetails", "push_space", "push_to_hub"):
        return _hub(name)
    if name == "SpectralDiffusionPipeline":
        from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

        return SpectralDiffusionPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
