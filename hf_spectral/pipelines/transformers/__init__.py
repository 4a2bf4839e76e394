"""The transformers pipeline, and the backbone that it takes where the Hub is out of reach."""

from hf_spectral.pipelines.transformers.pipeline import SpectralPathwaysPipeline, register

__all__ = ["SpectralPathwaysPipeline", "register"]
