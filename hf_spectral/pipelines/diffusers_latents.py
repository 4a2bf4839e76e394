"""From a picture to what a denoiser sees at one timestep: its size, its latents, its noise."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_spectral.config import Pathway
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.families.diffusers import DenoiserFamily
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.grid import as_pair
from hf_spectral.pipelines.diffusers_noise import is_flow
from hf_spectral.restoring import evaluation_mode, undoing

_NUM_PIXEL_CHANNELS = 3


def vae_factor(vae: Any) -> int:
    """Return how many pixels a latent covers along each axis.

    Args:
        vae: An autoencoder; None for a denoiser of pixels.

    Returns:
        A power of two, 1 without a VAE.
    """
    if vae is None:
        return 1
    levels = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return 2 ** (len(levels) - 1)


def check_components(family: DenoiserFamily, denoiser: Any, vae: Any, scheduler: Any) -> None:
    """Refuse what would fail only after the models have run.

    Args:
        family: Of the denoiser.
        denoiser: The denoiser.
        vae: Its autoencoder, or None.
        scheduler: The pipeline's scheduler, or None.

    Raises:
        SpectralError: If one is missing that the denoiser needs.
        UnsupportedBackboneError: If the denoiser is told things that this pipeline does not know.
    """
    config = denoiser.config
    if scheduler is None and not is_flow(family, None):
        raise SpectralError(
            "scheduler",
            expected="the one that the denoiser was trained with",
            got=None,
            fix="Load it with the pipeline, or pass scheduler=DDPMScheduler(...)",
        )
    if vae is None and config.in_channels != _NUM_PIXEL_CHANNELS:
        raise SpectralError(
            "vae",
            expected=f"the VAE whose latents of {config.in_channels} channels the denoiser reads",
            got=None,
            fix="Load the pipeline with its VAE; only denoisers of 3 channels read pixels",
        )
    reason = family.refusal(config)
    if reason is not None:
        raise UnsupportedBackboneError(
            "model",
            expected="a denoiser that is told a timestep and a prompt or class",
            got=f"{family.class_name} ({reason})",
            fix="Run it by yourself inside capture_attention(...)",
        )


def check_pathways(family: DenoiserFamily, pathways: Sequence[Pathway]) -> None:
    """Refuse a pathway that no layer of the denoiser can serve, before a model has run.

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
    """Return the sizes that a denoiser reads, apart from an upper limit.

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
    return InputGeometry((multiple, multiple), default, False, {}, is_square=family.is_square)


def size_for(
    family: DenoiserFamily, denoiser: Any, vae: Any, size: tuple[int, int], resolution: int | None
) -> tuple[int, int]:
    """Return the size at which a picture is read: sides that the VAE, the patches and the UNet's levels divide.

    Args:
        family: Of the denoiser.
        denoiser: The denoiser.
        vae: Its autoencoder, or None.
        size: Height and width of the picture, in pixels.
        resolution: Longer side wanted, in pixels; None takes the denoiser's own.

    Returns:
        Height and width in pixels; the picture's aspect ratio is kept, but by families that read squares only.

    Raises:
        SpectralError: If the denoiser has no positions for a picture of that size.
    """
    config, factor = denoiser.config, vae_factor(vae)
    found = geometry_of(family, denoiser, vae).size_for(*size, resolution)
    longest = family.max_latents(config)
    if longest is not None and max(found) > factor * longest:
        raise SpectralError(
            "resolution",
            expected=f"at most {factor * longest} pixels, for which {family.class_name} has positions",
            got=max(found),
            fix="Give a smaller resolution",
        )
    return found


def to_pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Return a picture as numbers.

    Args:
        image: RGB.
        size: Height and width to bring it to.

    Returns:
        Float32 of shape (1, 3, height, width), from -1 to 1.
    """
    resized = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 127.5 - 1


@torch.no_grad()
def encode_image(vae: Any, pixels: Tensor, denoiser: Any, family: DenoiserFamily) -> Tensor:
    """Return the latents of a picture, the most probable ones where the VAE gives a distribution.

    Args:
        vae: The autoencoder, or None for a denoiser of pixels.
        pixels: `(1, 3, height, width)`, from -1 to 1, on the device of the computation.
        denoiser: What reads the latents.
        family: Of the denoiser.

    Returns:
        Float32, scaled as the denoiser reads them.

    Raises:
        SpectralError: If their channels are not the denoiser's, or they are not finite.
    """
    latents = pixels if vae is None else _scaled(vae, _encoded(vae, pixels))
    channels = family.latent_channels(denoiser.config)
    if latents.shape[1] != channels:
        raise SpectralError(
            "vae",
            expected=f"latents of {channels} channels, which {family.class_name} reads",
            got=f"{latents.shape[1]} channels {'of pixels, without a VAE' if vae is None else 'from the VAE'}",
            fix="Give the VAE that belongs to the denoiser; denoisers for inpainting or depth are not supported",
        )
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
    """Say what to do where torch has no kernel for half precision on this device.

    Yields:
        Nothing.

    Raises:
        SpectralError: If torch says so.
        RuntimeError: If it says anything else.
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
        encoded = vae.encode(pixels.to(vae.dtype))
    return (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent).float()


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    config = vae.config
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, deviation = (
            torch.tensor(config[name], device=latents.device).view(1, -1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        return (latents - mean) * config.scaling_factor / deviation
    return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor
