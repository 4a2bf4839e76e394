"""The pipelines of both hosts, and `pipeline`, which builds the right one for a model."""

from __future__ import annotations

import os
from types import NoneType
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel
from transformers import pipeline as host_pipeline

from hf_spectral.capture import unwrapped
from hf_spectral.errors import SpectralError, shown
from hf_spectral.hub_errors import connection_errors
from hf_spectral.pipelines.backbone import TASK, backbone_of, basis_at
from hf_spectral.pipelines.hosts import checked_device, diffusion_pipeline, host_of, in_transformers
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.transformers import SpectralPathwaysPipeline, register
from hf_spectral.pipelines.transformers.offline import DEFAULT_BACKBONE
from hf_spectral.tensor_files import DAMAGE, one_line
from hf_spectral.torch_state import plain_torch

if TYPE_CHECKING:
    from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

__all__ = ["DEFAULT_BACKBONE", "TASK", "SpectralPathwaysPipeline", "host_of", "pipeline", "read_image", "register"]

# Errors that the hosts raise for models that they cannot load.
_NOT_LOADED: tuple[type[Exception], ...] = (
    *DAMAGE,
    RuntimeError,
    ImportError,
    LookupError,
    StrictDataclassError,
    *connection_errors(),
)


@plain_torch()
def pipeline(
    task: Any = None, model: Any = None, **kwargs: Any
) -> SpectralPathwaysPipeline | SpectralDiffusionPipeline:
    """Return the pipeline for a backbone of transformers, timm or diffusers; its repository or folder tells which.

    Example:
        >>> pipe = hf_spectral.pipeline("facebook/dinov2-small")
        >>> pipe = hf_spectral.pipeline("spectral-pathways", model="facebook/dinov2-small")  # as transformers' own

    Args:
        task: "spectral-pathways", as for `transformers.pipeline`; or, in its place, the model.
        model: Repository id, folder, transformers or timm model, or diffusers pipeline; None takes DINOv2-small,
            offline if the Hub is out of reach. A model object brings its image processor from where it was loaded. The
            repository or folder of a basis stands for the backbone that it was fitted on; the basis is then the
            default of calls, until one says `basis=None`.
        **kwargs: `device` (default: the first accelerator, else the CPU), `dtype`, `device_map`, `revision`, `token`;
            besides, as for `transformers.pipeline` (the defaults of the call among them), or as for diffusers'
            `from_pretrained`.

    Returns:
        `SpectralPathwaysPipeline`, which is `transformers.pipeline("spectral-pathways", ...)`, or
        `SpectralDiffusionPipeline`.

    Raises:
        SpectralError: If the model belongs to neither host, cannot be found or is damaged, the device does not exist,
            an argument is unknown or out of range, or diffusers is needed and not installed.
    """
    if isinstance(task, str) and task == TASK:
        task = None
    if task is not None and model is not None:
        raise SpectralError(
            "task", expected=f"{TASK!r} beside a model", got=_name_of(task), fix=f"Call pipeline({TASK!r}, model=...)"
        )
    model = task if model is None else model
    checked_device(kwargs.get("device"))  # Before anything is loaded.
    model = unwrapped(getattr(model, "_orig_mod", model))  # The model that torch.compile wraps is run uncompiled.
    try:
        host = host_of(model, *(kwargs.get(name) for name in ("revision", "token", "cache_dir")))
        if host == "basis":
            basis = basis_at(model, kwargs)
            model, revision = backbone_of(basis)
            host = host_of(model, revision, *(kwargs.get(name) for name in ("token", "cache_dir")))
            # A diffusion model reads images at the timesteps, with the prompt and with the noise of the fit.
            names = {"timesteps": "timesteps", "prompt": "prompt", "seed": "noise_seed"} if host == "diffusers" else {}
            fitted = {name: basis.backbone.get(stored) for name, stored in names.items()}
            kwargs = {"basis": basis, **fitted, **kwargs, "revision": revision}
        if host == "diffusers":
            return diffusion_pipeline(model, **kwargs)
        if (wrapped := in_transformers(model)) is not model:
            from transformers import ViTImageProcessor  # It says at once if torchvision is missing.

            # The model states itself how pixels are normalized.
            model, kwargs = wrapped, {"image_processor": ViTImageProcessor(), **kwargs}
        if not isinstance(model, (str, os.PathLike, NoneType, PreTrainedModel)):
            raise SpectralError(
                "model",
                expected="a repository or folder of a model or basis, a transformers or timm model or a diffusers "
                "pipeline",
                got=f"a {type(model).__name__}",
                fix="Give one of these",
            )
        # By its class, the host runs no code of the repository of a saved pipeline.
        return host_pipeline(TASK, model=model, pipeline_class=SpectralPathwaysPipeline, **kwargs)
    except SpectralError:
        raise
    except _NOT_LOADED as error:
        raise SpectralError(
            "model",
            expected="a vision backbone that can be loaded",
            got=f"{_name_of(model)} ({one_line(error)})",
            fix="Check its name or its files; without the Hub, give a folder or install hf-spectral[offline]",
        ) from error


def _name_of(model: Any) -> str:
    """Return how a message names a model."""
    if model is None:
        return "the default"
    return shown(str(model)) if isinstance(model, (str, os.PathLike)) else f"a {type(model).__name__}"
