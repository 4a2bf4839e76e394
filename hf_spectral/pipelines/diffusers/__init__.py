"""The diffusers pipeline: prompt, latents and noise of a picture, and what a denoiser's attention makes of them."""

from hf_spectral.pipelines.diffusers.pipeline import SETTINGS, SpectralDiffusionPipeline

__all__ = ["SETTINGS", "SpectralDiffusionPipeline"]
