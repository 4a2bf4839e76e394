"""What a denoiser is told besides the latents: the prompt's embeddings, and each family's own arguments.

Prompts are encoded by the host pipeline of each family, built around the same components: they are then exactly what
the denoiser was trained with, templates, lengths and masks among it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.restoring import evaluation_mode

_GUIDANCE = 3.5  # What guidance-distilled Flux models are run with by default.
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Condition:
    """Embeddings of one prompt; all None for a denoiser that reads none.

    Args:
        states: `(1, tokens, channels)`.
        mask: `(1, tokens)`, False where a token is padding.
        pooled: `(1, channels)`.
    """

    states: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class _Reader:
    """How the prompts of a family are read.

    Args:
        host: Class of the host pipeline that encodes them.
        components: Its text encoders and tokenizers, in pairs; the first pair has to be there, else zeros stand in.
        max_tokens: Longest prompt, as the last tokenizer counts.
        encode: Calls the host.
        zeros: Token count and channels of the embeddings that stand in for an empty prompt, and channels of the pooled.
    """

    host: str
    components: tuple[tuple[str, str], ...]
    max_tokens: int
    encode: Callable[[Any, str, torch.device], Condition]
    zeros: Callable[[Any], tuple[int, int, int | None]]
    host_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


_ONE = (("text_encoder", "tokenizer"),)
_TWO = (*_ONE, ("text_encoder_2", "tokenizer_2"))
_THREE = (*_TWO, ("text_encoder_3", "tokenizer_3"))


def _masked(host: Any, prompt: str, device: torch.device) -> Condition:
    states, mask, *_ = host.encode_prompt(prompt, do_classifier_free_guidance=False, device=device)
    return Condition(states, mask.bool())


def _masked_long(host: Any, prompt: str, device: torch.device) -> Condition:
    arguments = {"do_classifier_free_guidance": False, "device": device, "max_sequence_length": 300}
    states, mask, *_ = host.encode_prompt(prompt, **arguments)
    return Condition(states, mask.bool())


def _plain(host: Any, prompt: str, device: torch.device) -> Condition:
    return Condition(host.encode_prompt(prompt, device, 1, False)[0])


def _xl(host: Any, prompt: str, device: torch.device) -> Condition:
    states, _, pooled, _ = host.encode_prompt(prompt, device=device, do_classifier_free_guidance=False)
    return Condition(states, pooled=pooled)


def _sd3(host: Any, prompt: str, device: torch.device) -> Condition:
    arguments = {"device": device, "do_classifier_free_guidance": False}
    states, _, pooled, _ = host.encode_prompt(prompt, None, None, **arguments)
    return Condition(states, pooled=pooled)


def _flux(host: Any, prompt: str, device: torch.device) -> Condition:
    states, pooled, _ = host.encode_prompt(prompt, device=device)
    return Condition(states, pooled=pooled)


_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, "unet": None}
_READERS = {
    "UNet2DConditionModel": _Reader(
        "StableDiffusionPipeline", _ONE, 77, _plain, lambda config: (77, _width(config), None), _NO_CHECKER
    ),
    "UNet2DConditionModel-XL": _Reader(
        "StableDiffusionXLPipeline",
        _TWO,
        77,
        _xl,
        lambda config: (77, _width(config), _xl_pooled_width(config)),
        {"unet": None, "add_watermarker": False},
    ),
    "PixArtTransformer2DModel": _Reader(
        "PixArtAlphaPipeline", _ONE, 300, _masked_long, lambda config: (1, config.caption_channels, None)
    ),
    "SD3Transformer2DModel": _Reader(
        "StableDiffusion3Pipeline",
        _THREE,
        256,
        _sd3,
        lambda config: (333, config.joint_attention_dim, config.pooled_projection_dim),
    ),
    "FluxTransformer2DModel": _Reader(
        "FluxPipeline",
        _TWO,
        512,
        _flux,
        lambda config: (512, config.joint_attention_dim, config.pooled_projection_dim),
    ),
    "Lumina2Transformer2DModel": _Reader(
        "Lumina2Pipeline", _ONE, 256, _masked, lambda config: (1, config.cap_feat_dim, None)
    ),
    "SanaTransformer2DModel": _Reader(
        "SanaPipeline", _ONE, 300, _masked, lambda config: (1, config.caption_channels, None)
    ),
}


@torch.no_grad()
def encode_prompt(
    family: str, components: dict[str, Any], denoiser: Any, prompt: str, device: torch.device
) -> Condition:
    """Return the embeddings of a prompt, or nothing for a family that reads none.

    An empty prompt without text encoders is a row of zeros, which is said in the log: text encoders are often larger
    than the denoiser.

    Args:
        family: Name of the denoiser's class.
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
    reader = _READERS.get(family + ("-XL" if _is_xl(denoiser) else ""))
    if reader is None:
        if prompt:
            raise SpectralError(
                "prompt", expected=f"'': {family} reads a class, no text", got=repr(prompt), fix="Leave it out"
            )
        return Condition()
    loaded = {name: components.get(name) for pair in reader.components for name in pair}
    missing = [name for pair in reader.components[:2] for name in pair if loaded[name] is None]
    if missing:
        return _zeros(reader, denoiser, prompt, missing, device)
    _refuse_too_long(reader, loaded, prompt)
    others = {"vae": None, "scheduler": None}
    if not reader.host_arguments:
        others["transformer"] = denoiser
    host = getattr(diffusers, reader.host)(**loaded, **others, **reader.host_arguments)
    with evaluation_mode(*(one for one in loaded.values() if isinstance(one, torch.nn.Module))):
        return reader.encode(host, prompt, device)


def forward_arguments(
    family: str,
    denoiser: Any,
    noised: Tensor,
    share: float,
    timestep: Tensor,
    condition: Condition,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Return the arguments of a denoiser's forward.

    Args:
        family: Name of its class.
        denoiser: The denoiser.
        noised: Latents of some pictures with noise.
        share: The timestep as a share of all.
        timestep: The timestep, once a picture.
        condition: Embeddings of the prompt, the same for all.
        size: Height and width of the pictures in pixels, as they were read.

    Returns:
        Arguments by name.
    """
    config, dtype = denoiser.config, denoiser.dtype
    latents, share_of_all = noised.to(dtype), torch.full_like(timestep, share, dtype=dtype)
    states, pooled = (_for_each(latents, part) for part in (condition.states, condition.pooled))
    mask = _for_each(latents, condition.mask)
    if family == "UNet2DConditionModel":
        arguments: dict[str, Any] = {"sample": latents, "timestep": timestep, "encoder_hidden_states": states}
        if _is_xl(denoiser):
            time_ids = _for_each(latents, torch.tensor([[*size, 0, 0, *size]], dtype=dtype))
            arguments["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids}
        return arguments
    arguments = {"hidden_states": latents, "timestep": timestep}
    if family == "DiTTransformer2DModel":
        # The class that stands for none is the one after the last.
        labels = torch.full((len(latents),), config.num_embeds_ada_norm, device=latents.device)
        return arguments | {"class_labels": labels}
    arguments["encoder_hidden_states"] = states
    if family == "PixArtTransformer2DModel":
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if denoiser.use_additional_conditions:
            added["resolution"] = _for_each(latents, torch.tensor([size], dtype=dtype))
            added["aspect_ratio"] = _for_each(latents, torch.tensor([[size[0] / size[1]]], dtype=dtype))
        return arguments | {"added_cond_kwargs": added, "encoder_attention_mask": mask}
    if family == "SD3Transformer2DModel":
        return arguments | {"pooled_projections": pooled}
    if family == "FluxTransformer2DModel":
        assert states is not None  # encode_prompt gave them
        flux = _flux_arguments(config, latents, share_of_all, states.shape[1])
        return arguments | flux | {"pooled_projections": pooled}
    arguments["encoder_attention_mask"] = mask
    if family == "Lumina2Transformer2DModel":  # Counts from noise to data.
        return arguments | {"timestep": 1 - share_of_all}
    return arguments | {"timestep": timestep * config.timestep_scale}


def _flux_arguments(config: Any, latents: Tensor, share: Tensor, num_text: int) -> dict[str, Any]:
    count, channels, height, width = latents.shape
    host = diffusers.FluxPipeline
    placed: dict[str, Any] = {"device": latents.device, "dtype": latents.dtype}
    return {
        "hidden_states": host._pack_latents(latents, count, channels, height, width),
        "timestep": share,
        "img_ids": host._prepare_latent_image_ids(count, height // 2, width // 2, **placed),
        "txt_ids": torch.zeros(num_text, 3, **placed),
        "guidance": torch.full_like(share, _GUIDANCE) if config.guidance_embeds else None,
    }


def _for_each(latents: Tensor, told: Tensor | None) -> Tensor | None:
    """Return what one picture is told, `(1, ...)`, for every picture, where and in which precision the latents are."""
    if told is None:
        return None
    placed = told.to(latents.device, latents.dtype if told.is_floating_point() else None)
    return placed.expand(len(latents), *placed.shape[1:])


def _zeros(reader: _Reader, denoiser: Any, prompt: str, missing: list[str], device: torch.device) -> Condition:
    if prompt:
        raise SpectralError(
            "prompt",
            expected=f"'' without {', '.join(missing)}",
            got=repr(prompt),
            fix="Load the pipeline with its text encoders and tokenizers, or leave the prompt out",
        )
    _logger.warning("No %s: zeros stand for the embeddings of the empty prompt.", ", ".join(missing))
    tokens, width, pooled = reader.zeros(denoiser.config)
    return Condition(
        torch.zeros(1, tokens, width, device=device),
        torch.ones(1, tokens, dtype=torch.bool, device=device),
        None if pooled is None else torch.zeros(1, pooled, device=device),
    )


def _refuse_too_long(reader: _Reader, loaded: dict[str, Any], prompt: str) -> None:
    tokenizer = next(loaded[name] for _, name in reversed(reader.components) if loaded[name] is not None)
    limit = min(reader.max_tokens, tokenizer.model_max_length)
    length = len(tokenizer(prompt).input_ids)
    if length > limit:
        raise SpectralError("prompt", expected=f"at most {limit} tokens", got=f"{length} tokens", fix="Shorten it")


def _is_xl(denoiser: Any) -> bool:
    return denoiser.config.get("addition_embed_type") == "text_time"


def _width(config: Any) -> int:
    width = config.cross_attention_dim
    return int(width if isinstance(width, int) else width[0])


def _xl_pooled_width(config: Any) -> int:
    return int(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
