"""Sana: linear attention over latents of a deep autoencoder, text by cross-attention."""

from __future__ import annotations

from typing import Any

from hf_spectral.families.diffusers.base import DenoiserFamily, Noised


class Sana(DenoiserFamily):
    """`SanaTransformer2DModel`."""

    class_name = "SanaTransformer2DModel"
    example = "Efficient-Large-Model/Sana_600M_512px_diffusers"
    prompt_pipeline = "SanaPipeline"
    encoded = ("states", "mask")
    text_width = "caption_channels"
    is_flow = True
    where_refused = "it attends linearly, without a softmax over query-key pairs that could be read as an affinity"
    max_prompt_tokens = 300

    def refusal(self, config: Any) -> str | None:
        """Refuse the guidance-distilled models (Sana Sprint)."""
        return "it embeds a guidance scale (`guidance_embeds`)" if config.get("guidance_embeds") else None

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Scale the time."""
        scaled = noised.timestep * denoiser.config.timestep_scale
        return super().arguments(denoiser, noised) | {"timestep": scaled}
