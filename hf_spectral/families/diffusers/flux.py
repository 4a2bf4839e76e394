"""Flux: double and single stream blocks, text tokens first, rotary positions, latents packed two by two."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import Condition, Noised
from hf_spectral.families.diffusers.packed import Packed

_GUIDANCE = 3.5  # What guidance-distilled models are run with by default.


class Flux(Packed):
    """`FluxTransformer2DModel`."""

    class_name = "FluxTransformer2DModel"
    example = "black-forest-labs/FLUX.1-dev"

    def prompt_host(self, denoiser: Any) -> tuple[str | None, dict[str, Any]]:
        """Encode as Flux does."""
        return "FluxPipeline", {"transformer": denoiser}

    def num_text_encoders(self, denoiser: Any) -> int:
        """Return two: CLIP and T5."""
        return 2

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt with both text encoders."""
        states, pooled, _ = host.encode_prompt(prompt, device=device, **given)
        return Condition(states, pooled=pooled)

    def empty_prompt(self, config: Any) -> tuple[int, int, int | None]:
        """Return the 512 tokens of T5."""
        return 512, config.joint_attention_dim, config.pooled_projection_dim

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Pack the latents, and number their positions."""
        from diffusers import FluxPipeline

        states, latents = noised.condition.states, noised.latents
        assert states is not None  # Encoded, or zeros.
        count, channels, height, width = latents.shape
        placed: dict[str, Any] = {"device": latents.device, "dtype": latents.dtype}
        return {
            "hidden_states": FluxPipeline._pack_latents(latents, count, channels, height, width),
            "encoder_hidden_states": states,
            "pooled_projections": noised.condition.pooled,
            "timestep": noised.share,
            "img_ids": FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, **placed),
            "txt_ids": torch.zeros(states.shape[1], 3, **placed),
            "guidance": torch.full_like(noised.share, _GUIDANCE) if denoiser.config.guidance_embeds else None,
        }
