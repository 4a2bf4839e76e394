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
    prompt_pipeline = "FluxPipeline"
    num_encoders = 2
    empty_tokens = 512

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt with both text encoders."""
        states, pooled, _ = host.encode_prompt(prompt, device=device, **given)
        return Condition(states, pooled=pooled)

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add the pooled prompt and the strength of guidance."""
        guides = denoiser.config.guidance_embeds
        return super().arguments(denoiser, noised) | {
            "pooled_projections": noised.condition.pooled,
            "guidance": torch.full_like(noised.share, _GUIDANCE) if guides else None,
        }
