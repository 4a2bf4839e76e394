"""The forms in which the hosts' users meet the package."""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor, PreTrainedModel
from transformers import pipeline as host_pipeline

from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.offline import DEFAULT_BACKBONE
from hf_spectral.pipelines.transformers import TASK, SpectralPathwaysPipeline, register

__all__ = ["DEFAULT_BACKBONE", "TASK", "SpectralPathwaysPipeline", "pipeline", "read_image", "register"]


def pipeline(model: str | PreTrainedModel | None = None, **kwargs: Any) -> SpectralPathwaysPipeline:
    """Return the pipeline for a backbone: `transformers.pipeline("spectral-pathways", ...)` in fewer words.

    Args:
        model: Repository id, folder or model; None takes DINOv2-small, offline if the Hub is out of reach. A model
            object brings its image processor from where it was loaded.
        **kwargs: As for `transformers.pipeline`: `device`, `device_map`, `dtype`, `revision`, `image_processor`, and
            the defaults of the call.

    Returns:
        The pipeline.
    """
    if isinstance(model, PreTrainedModel) and "image_processor" not in kwargs and model.config.name_or_path:
        kwargs["image_processor"] = AutoImageProcessor.from_pretrained(model.config.name_or_path)
    return host_pipeline(TASK, model=model, **kwargs)
