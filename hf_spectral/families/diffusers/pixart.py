"""PixArt-alpha and PixArt-sigma: DiT with text by cross-attention."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised


class PixArt(DenoiserFamily):
    """`PixArtTransformer2DModel`; the alpha checkpoints are also given size and aspect ratio."""

    class_name = "PixArtTransformer2DModel"
    example = "PixArt-alpha/PixArt-XL-2-512x512"
    prompt_pipeline = "PixArtAlphaPipeline"
    has_mask = True
    text_width = "caption_channels"
    max_prompt_tokens = 300

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt at the length that PixArt-sigma was trained with."""
        return super().encode(host, prompt, device, max_sequence_length=self.max_prompt_tokens, **given)

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add the mask of the prompt, and size and aspect ratio where the denoiser embeds them."""
        height, width = noised.size
        embeds_size = denoiser.use_additional_conditions
        sizes = {
            "resolution": noised.for_each([height, width]) if embeds_size else None,
            "aspect_ratio": noised.for_each([height / width]) if embeds_size else None,
        }
        told = super().arguments(denoiser, noised)
        return told | {"added_cond_kwargs": sizes, "encoder_attention_mask": noised.condition.mask}
