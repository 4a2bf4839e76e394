"""The embeddings of the prompt, and the other arguments of a denoiser besides the latents.

Prompts are encoded by the host pipeline that the family names, built around the same components: the embeddings are
then exactly what the denoiser was trained with, templates, lengths and masks included.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
from collections.abc import Mapping
from typing import Any, TypedDict

import diffusers
import torch
from torch import Tensor

from hf_spectral.errors import STRUCTURE_ERRORS, SpectralError
from hf_spectral.families.diffusers import Condition, DenoiserFamily, Noised
from hf_spectral.restoring import evaluation_mode

_logger = logging.getLogger(__name__)


class PromptEmbeddings(TypedDict, total=False):
    """A prompt that is encoded already, under the names that the host pipelines have for it."""

    prompt_embeds: Any
    prompt_embeds_2: Any
    prompt_embeds_t5: Any
    prompt_embeds_llama3: Any
    prompt_embeds_mask: Any
    prompt_attention_mask: Any
    prompt_attention_mask_2: Any
    pooled_prompt_embeds: Any


#: Text encoders and tokenizers, in pairs.
ENCODERS = [f"{part}{ending}" for ending in ("", "_2", "_3", "_4") for part in ("text_encoder", "tokenizer")]
#: The prompt, and what can be given in its place.
PROMPT_NAMES = frozenset(PromptEmbeddings.__annotations__) | {"prompt"}


def refuse_negative(settings: Mapping[str, Any]) -> None:
    """Refuse negative prompts: a picture is read without guidance.

    Args:
        settings: Arguments of a call by name.

    Raises:
        SpectralError: If a negative prompt or embeddings of it are among them.
    """
    if negative := sorted(name for name in settings if name.startswith("negative_")):
        raise SpectralError(
            negative[0],
            expected="nothing negative: a picture is read without guidance",
            got=", ".join(negative),
            fix="Leave it out; `generate` takes it",
        )


def given_embeddings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the embeddings of a prompt that a call gives.

    Args:
        settings: Arguments of the call by name.

    Returns:
        Embeddings by name, those left out that are None.

    Raises:
        SpectralError: If a prompt is given beside them.
    """
    found = {name: settings[name] for name in PromptEmbeddings.__annotations__ if settings.get(name) is not None}
    if found and settings.get("prompt") is not None:
        raise SpectralError(
            "prompt",
            expected=f"None beside {', '.join(sorted(found))}",
            got=repr(settings["prompt"]),
            fix="Give the prompt or its embeddings",
        )
    return found


def condition_of(pipe: Any, given: Mapping[str, Any]) -> tuple[str, Condition]:
    """Return embeddings of a prompt as the denoiser's own host pipeline passes them on.

    Args:
        pipe: The spectral pipeline; no text encoder has to be loaded.
        given: Embeddings of one prompt by name, see `given_embeddings`.

    Returns:
        A name that tells these embeddings from others, and what the denoiser is told.

    Raises:
        SpectralError: If the family takes no such embeddings or further ones, or they are of another shape.
    """
    family, device, host = pipe.family, pipe._execution_device, prompt_host(pipe)
    taken = [] if host is None else inspect.signature(type(host).__call__).parameters
    names = [name for name in PromptEmbeddings.__annotations__ if name in taken]
    # The host gives no mask if it would mask nothing.
    missing = [name for name in names if name not in given and name != "prompt_embeds_mask"]
    if wrong := sorted(given.keys() - set(names)) + missing:
        raise SpectralError(
            wrong[0],
            expected=f"for {family.class_name} {', '.join(names) or 'no embeddings'}",
            got=", ".join(sorted(given)),
            fix="Give what encode_prompt of its own pipeline returns" if names else "Leave it out",
        )
    tensors = {name: one[0] if isinstance(one, list) and one else one for name, one in given.items()}
    if not all(isinstance(one, Tensor) for one in tensors.values()):
        got = ", ".join(f"{name} of type {type(one).__name__}" for name, one in given.items())
        raise SpectralError("prompt_embeds", expected="tensors", got=got, fix="Give what encode_prompt returned")
    shapes = ", ".join(f"{name} of shape {tuple(one.shape)}" for name, one in tensors.items())
    fix = "Encode one prompt, for all pictures, by the text encoders that belong to the denoiser"
    try:
        condition = family.encode(host, None, device, **given).apply(lambda part: part.to(device))
    except STRUCTURE_ERRORS as error:
        raise SpectralError("prompt_embeds", expected="those of one prompt", got=shapes, fix=fix) from error
    own = family.zeros(pipe.denoiser.config)
    pairs = {"prompt_embeds": (condition.states, own.states), "pooled_prompt_embeds": (condition.pooled, own.pooled)}
    for name, (mine, zeros) in pairs.items():
        if zeros is None:
            continue
        if mine is None or (mine.ndim, len(mine), mine.shape[-1]) != (zeros.ndim, 1, zeros.shape[-1]):
            expected = f"those of one prompt, {zeros.shape[-1]} channels wide"
            raise SpectralError(name, expected=expected, got=shapes, fix=fix)
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(tensors[name].detach().float().cpu().numpy().tobytes())
    return f"embeddings {content.hexdigest()[:16]}", condition


@torch.no_grad()
def encode_prompt(pipe: Any, prompt: str) -> Condition:
    """Return the embeddings of a prompt, or nothing for a family that reads none.

    Without text encoders, zeros stand for an empty prompt, and the log says so: text encoders are often larger than
    the denoiser.

    Args:
        pipe: The spectral pipeline, with or without text encoders and tokenizers.
        prompt: The prompt.

    Returns:
        The embeddings.

    Raises:
        SpectralError: If a prompt is given to a family that reads none, without its text encoders, or is too long.
    """
    if not isinstance(prompt, str):
        raise SpectralError("prompt", expected="one string", got=repr(prompt), fix="Give one prompt for all pictures")
    family, components, device = pipe.family, pipe.components, pipe._execution_device
    if family.prompt_host(pipe.denoiser.config) is None:
        if prompt:
            expected = f"'': {family.class_name} reads a class, no text"
            raise SpectralError("prompt", expected=expected, got=repr(prompt), fix="Leave it out")
        return Condition()
    if missing := missing_encoders(pipe):
        if prompt:
            raise SpectralError(
                "prompt",
                expected=f"'' without {', '.join(missing)}",
                got=repr(prompt),
                fix="Load the pipeline with its text encoders and tokenizers, or leave the prompt out",
            )
        _logger.warning("No %s: zeros stand for the embeddings of the empty prompt.", ", ".join(missing))
        return family.zeros(pipe.denoiser.config).apply(lambda part: part.to(device))
    parts = _parts(pipe)
    _refuse_too_long(family, [components.get(name) for name in parts if name.startswith("tokenizer")], prompt)
    with evaluation_mode(*(one for one in map(components.get, parts) if isinstance(one, torch.nn.Module))):
        return family.encode(prompt_host(pipe), prompt, device)


def prompt_host(pipe: Any) -> Any:
    """Return the host pipeline that encodes prompts for a denoiser, around the components that are loaded.

    Args:
        pipe: The spectral pipeline, with or without text encoders and tokenizers.

    Returns:
        The pipeline, without VAE and scheduler; None for a family that reads no prompt.
    """
    name = pipe.family.prompt_host(pipe.denoiser.config)
    if name is None:
        return None
    encoders = {part: pipe.components.get(part) for part in ENCODERS}
    return host_pipeline(name, {**encoders, "transformer": pipe.denoiser})


def host_pipeline(name: str, components: Mapping[str, Any]) -> Any:
    """Build a pipeline of the host, without safety checker and watermark.

    Args:
        name: Its class.
        components: Components by name; those that it does not have are passed over.

    Returns:
        The pipeline, None in the place of components that are not given.
    """
    host_class = getattr(diffusers, name)
    taken = inspect.signature(host_class).parameters
    parts = {part: components.get(part) for part, one in taken.items() if one.default is one.empty}
    parts |= {part: one for part, one in components.items() if part in taken}
    return host_class(**parts, **{one: False for one in ("requires_safety_checker", "add_watermarker") if one in taken})


def missing_encoders(pipe: Any) -> list[str]:
    """Return the names of text encoders and tokenizers that are not loaded, of those that a prompt needs.

    Args:
        pipe: The spectral pipeline of a denoiser that reads prompts.

    Returns:
        Names of components.
    """
    needed = _parts(pipe)[: 2 * pipe.family.num_needed_encoders]
    return [name for name in needed if pipe.components.get(name) is None]


def _parts(pipe: Any) -> list[str]:
    """Return the text encoders and tokenizers that read a prompt: those of the host's pipeline."""
    taken = inspect.signature(getattr(diffusers, pipe.family.prompt_host(pipe.denoiser.config))).parameters
    # Where a package is missing, the host has a stand-in that names none.
    return [part for part in ENCODERS if part in taken] or ENCODERS[:2]


def forward_arguments(
    pipe: Any, noised: Tensor, share: float, timestep: Tensor, condition: Condition, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the arguments of a denoiser's forward.

    Args:
        pipe: The spectral pipeline.
        noised: Latents of some pictures with noise.
        share: The timestep as a share of all.
        timestep: The timestep, once per picture.
        condition: Embeddings of the prompt, the same for all.
        size: Height and width of the pictures in pixels, as they were read.

    Returns:
        Arguments by name.
    """
    latents = noised.to(pipe.denoiser.dtype)
    told = condition.apply(functools.partial(_for_each, latents))
    shares = torch.full_like(timestep, share, dtype=latents.dtype)
    return pipe.family.arguments(pipe.denoiser, Noised(latents, timestep, shares, told, size))


def _for_each(latents: Tensor, told: Tensor) -> Tensor:
    """Repeat an embedding `(1, ...)` for every picture, on the device and in the precision of the latents."""
    placed = told.to(latents.device, latents.dtype if told.is_floating_point() else None)
    return placed.expand(len(latents), *placed.shape[1:])


def _refuse_too_long(family: DenoiserFamily, tokenizers: list[Any], prompt: str) -> None:
    last = next(one for one in reversed(tokenizers) if one is not None)
    tokenizer = last if hasattr(last, "model_max_length") else last.tokenizer  # A processor of pictures too holds one.
    limit = min(family.max_prompt_tokens, tokenizer.model_max_length)
    length = len(tokenizer(prompt).input_ids)
    if length > limit:
        raise SpectralError("prompt", expected=f"at most {limit} tokens", got=f"{length} tokens", fix="Shorten it")
