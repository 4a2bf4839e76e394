"""The transformers pipeline, and the backbone that it takes where the Hub is out of reach."""

from hf_spectral.pipelines.backbone import TASK
from hf_spectral.pipelines.transformers.pipeline import SpectralPathwaysPipeline, register

__all__ = ["TASK", "SpectralPathwaysPipeline", "register"]
