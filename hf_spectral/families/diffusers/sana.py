"""Sana: linear attention over latents of a deep autoencoder, text by cross-attention."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised


class Sana(DenoiserFamily):
    """`SanaTransformer2DModel`."""

    class_name = "SanaTransformer2DModel"
    example = "Efficient-Large-Model/Sana_600M_512px_diffusers"
    is_flow = True
    where_refused = "it attends linearly, without a softmax over query-key pairs that could be read as an affinity"
    max_prompt_tokens = 300

    def refusal(self, config: Any) -> str | None:
        """Refuse the guidance-distilled models (Sana Sprint)."""
        return "it embeds a guidance scale (`guidance_embeds`)" if config.get("guidance_embeds") else None

    def prompt_host(self, denoiser: Any) -> tuple[str | None, dict[str, Any]]:
        """Encode as Sana does."""
        return "SanaPipeline", {"transformer": denoiser}

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt with its mask."""
        states, mask, *_ = host.encode_prompt(prompt, do_classifier_free_guidance=False, device=device, **given)
        return Condition(states, mask.bool())

    def empty_prompt(self, config: Any) -> tuple[int, int, int | None]:
        """Return one token."""
        return 1, config.caption_channels, None

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add the mask of the prompt, and scale the time."""
        told = super().arguments(denoiser, noised)
        scaled = noised.timestep * denoiser.config.timestep_scale
        return told | {"timestep": scaled, "encoder_attention_mask": noised.condition.mask}
