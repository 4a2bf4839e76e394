"""From a picture to its latents: the size at which it is read, the pixels, and the checks of VAE and denoiser."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import diffusers
import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from PIL import Image
from torch import Tensor

from hf_spectral.errors import SpectralError, UnsupportedBackboneError, refuse_backbone
from hf_spectral.families.diffusers import DenoiserFamily, family_of
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.grid import as_pair
from hf_spectral.pipelines.diffusers.noise import is_flow
from hf_spectral.pipelines.settings import HUB_ARGUMENTS
from hf_spectral.records import Pathway
from hf_spectral.restoring import evaluation_mode, undoing

_PIXELS = {1: "L", 3: "RGB"}  # Channels of a denoiser of pixels, and how Pillow calls them.


def vae_factor(vae: Any) -> int:
    """Return how many pixels a latent covers along each axis.

    Args:
        vae: An autoencoder; None for a denoiser of pixels.

    Returns:
        A power of two, 1 without a VAE.
    """
    if vae is None:
        return 1
    if (stated := getattr(vae, "spatial_compression_ratio", None)) is not None:
        return int(stated)
    levels = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return 2 ** (len(levels) - 1)


def check_components(family: DenoiserFamily, denoiser: Any, vae: Any, scheduler: Any) -> None:
    """Reject components that would fail only after the models have run.

    Args:
        family: Of the denoiser.
        denoiser: The denoiser.
        vae: Its autoencoder, or None.
        scheduler: The pipeline's scheduler, or None.

    Raises:
        SpectralError: If one is missing that the denoiser needs.
        UnsupportedBackboneError: If the denoiser is told things that this pipeline does not know.
    """
    if scheduler is None and not is_flow(family, None):
        raise SpectralError(
            "scheduler",
            expected="the one that the denoiser was trained with",
            got=None,
            fix="Load it with the pipeline, or pass scheduler=DDPMScheduler(...)",
        )
    _check_configs(family, denoiser.config, None if vae is None else vae.config)


def check_repository(repository: str | os.PathLike[str], given: Mapping[str, Any]) -> None:
    """Refuse a repository whose denoiser cannot be read, from its small files alone: no weight is downloaded.

    Args:
        repository: Id or folder of a pipeline.
        given: Arguments of `from_pretrained`; components among them stand in for those of the repository.

    Raises:
        SpectralError: If a part is missing that the denoiser needs.
        UnsupportedBackboneError: If the pipeline has no denoiser, or one that cannot be read.
    """
    hub = {name: given[name] for name in HUB_ARGUMENTS if name in given}
    index = diffusers.DiffusionPipeline.load_config(repository, **hub)
    entries = {part: index[part] for part in ("unet", "transformer", "vae") if any(index.get(part) or ())}
    other = [part for part in index if part.endswith(("vae", "movq")) and any(index[part] or ())]
    if other and "vae" not in other:
        reason = f"its latents come from its {other[0]!r}, which is not known"
        _refuse(index.get("_class_name"), reason)

    def class_of(part: str) -> type | None:
        library, name = entries[part][:2]
        # Code of the repository's own is looked at once it is loaded.
        return getattr(diffusers, name, type(name, (), {})) if library == "diffusers" else None

    def config_of(part: str) -> Mapping[str, Any] | None:
        if part in given or part not in entries:
            return getattr(given.get(part), "config", None)
        load: Any = getattr(class_of(part), "load_config", None)
        return {} if load is None else load(repository, subfolder=part, **hub)

    present = {part: given[part] if part in given else entries.get(part) for part in ("unet", "transformer")}
    if not any(present.values()):
        _refuse(index.get("_class_name"), "it has neither a `unet` nor a `transformer`")
    for part, found in present.items():
        denoiser_class = type(found) if part in given else found and class_of(part)
        if found and denoiser_class is not None:
            family = family_of(denoiser_class)
            check_pipeline(family, index.get("_class_name"))
            _check_configs(family, FrozenDict(config_of(part) or {}), config_of("vae"))


def check_pipeline(family: DenoiserFamily, name: Any) -> None:
    """Refuse a denoiser whose own pipeline shows it further pictures, if its configuration does not say so.

    Args:
        family: Of the denoiser.
        name: Class of the host's pipeline that it belongs to.

    Raises:
        UnsupportedBackboneError: If it is shown further pictures.
    """
    if family.other_pipelines is not None and re.search(family.other_pipelines, str(name)):
        _refuse(family.class_name, f"{name} shows it further pictures, which are edited or split")


def _check_configs(family: DenoiserFamily, config: Any, vae_config: Mapping[str, Any] | None) -> None:
    """Reject a denoiser that needs more inputs than a picture, a timestep and a prompt or class."""
    channels = config.get("in_channels")
    if vae_config is None and channels not in (None, *_PIXELS):
        raise SpectralError(
            "vae",
            expected=f"the VAE whose latents of {channels} channels the denoiser reads",
            got=None,
            fix="Load the pipeline with its VAE; only denoisers of 1 or 3 channels read pixels",
        )
    if channels is not None and vae_config is not None and vae_config.get("latent_channels") is not None:
        _require_channels(family, config, vae_config["latent_channels"])
    if (reason := family.refusal(config)) is not None:
        _refuse(family.class_name, reason, ", or run this denoiser by yourself inside capture_attention(...)")


def _refuse(name: Any, reason: str, further_fix: str = "") -> NoReturn:
    expected = "a denoiser that is shown a picture and told a timestep and a prompt or class"
    fix = f"Choose another text-to-image or class-to-image pipeline{further_fix}"
    refuse_backbone(str(name), reason, expected, fix)


def _require_channels(family: DenoiserFamily, config: Any, given: int, source: str = "from the VAE") -> None:
    channels = family.latent_channels(config)
    predicted = family.latent_channels(FrozenDict({**config, "in_channels": config.get("out_channels") or 0}))
    if given < channels and predicted in (given, 2 * given):  # Mean alone, or mean and variance.
        reason = f"its input holds {channels - given} more channels than the {given} of a VAE: a mask or a picture"
        _refuse(family.class_name, reason)
    if given != channels:
        raise UnsupportedBackboneError(
            "vae",
            expected=f"latents of {channels} channels, which {family.class_name} reads",
            got=f"{given} channels {source}",
            fix="Give the VAE that belongs to the denoiser",
        )


def check_pathways(family: DenoiserFamily, pathways: Sequence[Pathway]) -> None:
    """Reject a pathway that no layer of the denoiser supports, before a model has run.

    Args:
        family: Of the denoiser.
        pathways: Those asked for.

    Raises:
        SpectralError: If `where` is among them and the denoiser compares no queries with keys.
    """
    reason = family.where_refused
    if reason is not None and "where" in pathways:
        raise SpectralError(
            "pathway",
            expected=f"'what' for {family.class_name}",
            got=f"'where' ({reason})",
            fix="Ask for pathway='what'",
        )


def geometry_of(family: DenoiserFamily, denoiser: Any, vae: Any) -> InputGeometry:
    """Return the sizes that a denoiser reads: sides that the VAE, the patches and the levels of a UNet divide.

    Args:
        family: Of the denoiser.
        denoiser: The denoiser.
        vae: Its autoencoder, or None.

    Returns:
        The geometry, in pixels.
    """
    factor = vae_factor(vae)
    multiple = factor * family.latent_multiple(denoiser.config)
    height, width = as_pair(denoiser.config.get("sample_size") or family.default_side)
    default = (factor * height, factor * width)
    longest = family.max_latents(denoiser.config)
    longest = None if longest is None else factor * longest
    return InputGeometry((multiple, multiple), default, False, {}, family.is_square, longest)


def to_pixels(image: Image.Image, size: tuple[int, int], channels: int = 3) -> Tensor:
    """Return a picture as numbers.

    Args:
        image: RGB.
        size: Height and width to bring it to.
        channels: 3, or 1 for its brightness.

    Returns:
        Float32 of shape (1, channels, height, width), from -1 to 1.
    """
    resized = image.convert(_PIXELS[channels]).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.atleast_3d(np.array(resized))).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def encode_image(vae: Any, pixels: Tensor, denoiser: Any, family: DenoiserFamily) -> Tensor:
    """Return the latents of a picture, the most probable ones where the VAE gives a distribution.

    Args:
        vae: The autoencoder, or None for a denoiser of pixels.
        pixels: `(1, channels, height, width)`, from -1 to 1, on the device of the computation.
        denoiser: What reads the latents.
        family: Of the denoiser.

    Returns:
        Float32, scaled as the denoiser reads them.

    Raises:
        SpectralError: If their channels are not the denoiser's, or they are not finite.
    """
    latents = pixels if vae is None else family.scale_latents(vae, _encoded(vae, pixels))
    source = "of pixels, without a VAE" if vae is None else "from the VAE"
    _require_channels(family, denoiser.config, latents.shape[1], source)
    if not torch.isfinite(latents).all():
        raise SpectralError(
            "vae",
            expected="finite latents",
            got="NaN or infinity",
            fix="The weights hold NaN, or the VAE overflows in half precision: use vae.to(torch.float32)",
        )
    return latents


@contextlib.contextmanager
def half_precision_explained() -> Iterator[None]:
    """Explain the error of torch where it has no kernel for half precision on this device.

    Yields:
        Nothing.

    Raises:
        SpectralError: If torch raises this error.
        RuntimeError: If torch raises another one.
    """
    try:
        yield
    except RuntimeError as error:
        if "not implemented for 'Half'" not in str(error):
            raise
        raise SpectralError(
            "dtype",
            expected="a precision that this device computes in",
            got=f"float16 ({error})",
            fix="Load the pipeline with dtype=torch.float32 or torch.bfloat16",
        ) from error


def _encoded(vae: Any, pixels: Tensor) -> Tensor:
    dtype = vae.dtype
    upcast = dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    # Float16 and back is exact, so that the VAE is left as it came.
    with undoing(functools.partial(vae.to, dtype)) if upcast else contextlib.nullcontext(), evaluation_mode(vae):
        if upcast:
            vae.to(torch.float32)
        of_frames = hasattr(vae, "temperal_downsample")  # Spelled so by the host: a picture is a video of one frame.
        encoded = vae.encode(pixels[:, :, None].to(vae.dtype) if of_frames else pixels.to(vae.dtype))
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    return (latents[:, :, 0] if of_frames else latents).float()
