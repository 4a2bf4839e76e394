"""Chroma: Flux without guidance and pooled prompt; padding of the prompt is masked."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import Condition, Noised
from hf_spectral.families.diffusers.packed import Packed


class Chroma(Packed):
    """`ChromaTransformer2DModel`."""

    class_name = "ChromaTransformer2DModel"
    example = "lodestones/Chroma1-HD"

    def prompt_host(self, denoiser: Any) -> tuple[str | None, dict[str, Any]]:
        """Encode as Chroma does."""
        return "ChromaPipeline", {"transformer": denoiser}

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt with its mask."""
        states, _, mask, *_ = host.encode_prompt(prompt, device=device, do_classifier_free_guidance=False, **given)
        return Condition(states, mask.bool())

    def empty_prompt(self, config: Any) -> tuple[int, int, int | None]:
        """Return the 512 tokens of T5."""
        return 512, config.joint_attention_dim, None

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Pack the latents, number their positions, and extend the mask of the prompt over the image."""
        from diffusers import ChromaPipeline

        condition, latents = noised.condition, noised.latents
        assert condition.states is not None
        assert condition.mask is not None
        count, channels, height, width = latents.shape
        placed: dict[str, Any] = {"device": latents.device, "dtype": latents.dtype}
        hidden_states = ChromaPipeline._pack_latents(latents, count, channels, height, width)
        return {
            "hidden_states": hidden_states,
            "encoder_hidden_states": condition.states,
            "timestep": noised.share,
            "img_ids": ChromaPipeline._prepare_latent_image_ids(count, height // 2, width // 2, **placed),
            "txt_ids": torch.zeros(condition.states.shape[1], 3, **placed),
            "attention_mask": torch.cat([condition.mask, condition.mask.new_ones(hidden_states.shape[:2])], dim=1),
        }
