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
    encoded = ("states", "mask")
    text_width = "caption_channels"
    max_prompt_tokens = 300

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt at the length that PixArt-sigma was trained with."""
        return super().encode(host, prompt, device, max_sequence_length=self.max_prompt_tokens, **given)

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add size and aspect ratio where the denoiser embeds them."""
        height, width = noised.size
        embeds_size = denoiser.use_additional_conditions
        sizes = {
            "resolution": noised.for_each([height, width]) if embeds_size else None,
            "aspect_ratio": noised.for_each([height / width]) if embeds_size else None,
        }
        return super().arguments(denoiser, noised) | {"added_cond_kwargs": sizes}
