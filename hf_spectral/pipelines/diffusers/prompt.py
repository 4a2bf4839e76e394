"""The embeddings of the prompt, and the other arguments of a denoiser besides the latents.

Prompts are encoded by the host pipeline that the family names, built around the same components: the embeddings are
then exactly what the denoiser was trained with, templates, lengths and masks included.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import diffusers
import torch
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.families.diffusers import Condition, DenoiserFamily, Noised
from hf_spectral.restoring import evaluation_mode

_logger = logging.getLogger(__name__)


@torch.no_grad()
def encode_prompt(
    family: DenoiserFamily, components: dict[str, Any], denoiser: Any, prompt: str, device: torch.device
) -> Condition:
    """Return the embeddings of a prompt, or nothing for a family that reads none.

    Without text encoders, zeros stand for an empty prompt, and the log says so: text encoders are often larger than
    the denoiser.

    Args:
        family: Of the denoiser.
        components: Text encoders and tokenizers by name, None where they are not loaded.
        denoiser: The denoiser.
        prompt: The prompt.
        device: Where to encode it.

    Returns:
        The embeddings.

    Raises:
        SpectralError: If a prompt is given to a family that reads none, without its text encoders, or is too long.
    """
    if not isinstance(prompt, str):
        raise SpectralError("prompt", expected="one string", got=repr(prompt), fix="Give one prompt for all pictures")
    host, arguments = family.prompt_host(denoiser)
    if host is None:
        if prompt:
            expected = f"'': {family.class_name} reads a class, no text"
            raise SpectralError("prompt", expected=expected, got=repr(prompt), fix="Leave it out")
        return Condition()
    if missing := missing_encoders(family, components, denoiser):
        return _zeros(family, denoiser, prompt, missing, device)
    loaded: dict[str, Any] = {name: components.get(name) for name in _parts(family, denoiser)}
    _refuse_too_long(family, [one for name, one in loaded.items() if name.startswith("tokenizer")], prompt)
    encoder: Any = getattr(diffusers, host)(**loaded, vae=None, scheduler=None, **arguments)
    with evaluation_mode(*(one for one in loaded.values() if isinstance(one, torch.nn.Module))):
        return family.encode(encoder, prompt, device)


def missing_encoders(family: DenoiserFamily, components: dict[str, Any], denoiser: Any) -> list[str]:
    """Return the names of text encoders and tokenizers that are not loaded, of those that a prompt needs.

    Args:
        family: Of the denoiser.
        components: Text encoders and tokenizers by name, None where they are not loaded.
        denoiser: The denoiser.

    Returns:
        Names of components.
    """
    needed = _parts(family, denoiser)[: 2 * family.num_needed_encoders]
    return [name for name in needed if components.get(name) is None]


def _parts(family: DenoiserFamily, denoiser: Any) -> list[str]:
    endings = ("", "_2", "_3", "_4")[: family.num_text_encoders(denoiser)]
    return [f"{part}{ending}" for ending in endings for part in ("text_encoder", "tokenizer")]


def forward_arguments(
    family: DenoiserFamily,
    denoiser: Any,
    noised: Tensor,
    share: float,
    timestep: Tensor,
    condition: Condition,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Return the arguments of a denoiser's forward.

    Args:
        family: Of the denoiser.
        denoiser: The denoiser.
        noised: Latents of some pictures with noise.
        share: The timestep as a share of all.
        timestep: The timestep, once per picture.
        condition: Embeddings of the prompt, the same for all.
        size: Height and width of the pictures in pixels, as they were read.

    Returns:
        Arguments by name.
    """
    latents = noised.to(denoiser.dtype)
    told = condition.apply(functools.partial(_for_each, latents))
    shares = torch.full_like(timestep, share, dtype=latents.dtype)
    return family.arguments(denoiser, Noised(latents, timestep, shares, told, size))


def _for_each(latents: Tensor, told: Tensor) -> Tensor:
    """Return what one picture is told, `(1, ...)`, for every picture, where and in which precision the latents are."""
    placed = told.to(latents.device, latents.dtype if told.is_floating_point() else None)
    return placed.expand(len(latents), *placed.shape[1:])


def _zeros(family: DenoiserFamily, denoiser: Any, prompt: str, missing: list[str], device: torch.device) -> Condition:
    if prompt:
        raise SpectralError(
            "prompt",
            expected=f"'' without {', '.join(missing)}",
            got=repr(prompt),
            fix="Load the pipeline with its text encoders and tokenizers, or leave the prompt out",
        )
    _logger.warning("No %s: zeros stand for the embeddings of the empty prompt.", ", ".join(missing))
    return family.zeros(denoiser.config).apply(lambda part: part.to(device))


def _refuse_too_long(family: DenoiserFamily, tokenizers: list[Any], prompt: str) -> None:
    last = next(one for one in reversed(tokenizers) if one is not None)
    tokenizer = last if hasattr(last, "model_max_length") else last.tokenizer  # A processor of pictures too holds one.
    limit = min(family.max_prompt_tokens, tokenizer.model_max_length)
    length = len(tokenizer(prompt).input_ids)
    if length > limit:
        raise SpectralError("prompt", expected=f"at most {limit} tokens", got=f"{length} tokens", fix="Shorten it")
