"""The diffusers pipeline: prompt, latents and noise of a picture, and what a denoiser's attention makes of them."""

from hf_spectral.errors import SpectralError

try:
    import diffusers  # noqa: F401
except ImportError as error:
    raise SpectralError(
        "model", expected="the extra [diffusers]", got=str(error), fix="Run: pip install 'hf-spectral[diffusers]'"
    ) from error

from hf_spectral.pipelines.diffusers.pipeline import SETTINGS, SpectralDiffusionPipeline

__all__ = ["SETTINGS", "SpectralDiffusionPipeline"]
