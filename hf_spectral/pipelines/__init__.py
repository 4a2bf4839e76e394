"""The forms in which the hosts' users meet the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoImageProcessor, PreTrainedModel
from transformers import pipeline as host_pipeline

from hf_spectral.pipelines.hosts import diffusion_pipeline, host_of
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.offline import DEFAULT_BACKBONE
from hf_spectral.pipelines.transformers import TASK, SpectralPathwaysPipeline, register

if TYPE_CHECKING:
    from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

__all__ = ["DEFAULT_BACKBONE", "TASK", "SpectralPathwaysPipeline", "host_of", "pipeline", "read_image", "register"]


def pipeline(model: Any = None, **kwargs: Any) -> SpectralPathwaysPipeline | SpectralDiffusionPipeline:
    """Return the pipeline for a backbone of either host, as its repository or folder says whose it is.

    Args:
        model: Repository id, folder, transformers model or diffusers pipeline; None takes DINOv2-small, offline if the
            Hub is out of reach. A model object brings its image processor from where it was loaded.
        **kwargs: `device` (default: the first accelerator, else the CPU), `dtype`, `device_map`, `revision`, `token`;
            besides, as for `transformers.pipeline` (the defaults of the call among them), or as for diffusers'
            `from_pretrained`.

    Returns:
        `SpectralPathwaysPipeline`, which is `transformers.pipeline("spectral-pathways", ...)`, or
        `SpectralDiffusionPipeline`.

    Raises:
        SpectralError: If the model is neither host's or not to be found, or diffusers is needed and not installed.
    """
    if host_of(model, *(kwargs.get(name) for name in ("revision", "token", "cache_dir"))) == "diffusers":
        return diffusion_pipeline(model, **kwargs)
    if isinstance(model, PreTrainedModel) and "image_processor" not in kwargs and model.config.name_or_path:
        kwargs["image_processor"] = AutoImageProcessor.from_pretrained(model.config.name_or_path)
    return host_pipeline(TASK, model=model, **kwargs)
