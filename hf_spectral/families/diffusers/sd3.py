"""Stable Diffusion 3 and 3.5: double-stream blocks, image tokens first."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised


class StableDiffusion3(DenoiserFamily):
    """`SD3Transformer2DModel`; the second attention of the 3.5 blocks sees the image alone."""

    class_name = "SD3Transformer2DModel"
    example = "stabilityai/stable-diffusion-3.5-medium"
    prompt_pipeline = "StableDiffusion3Pipeline"
    num_encoders = 3
    empty_tokens = 333  # 77 of CLIP and 256 of T5.
    is_flow = True
    text = "last"
    max_prompt_tokens = 256

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt once for all text encoders."""
        states, _, pooled, _ = host.encode_prompt(
            prompt, None, None, device=device, do_classifier_free_guidance=False, **given
        )
        return Condition(states, pooled=pooled)

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add the pooled prompt."""
        return super().arguments(denoiser, noised) | {"pooled_projections": noised.condition.pooled}

    def sees_text(self, path: str, module: Any) -> bool:
        """Tell by the projections that text tokens have of their own."""
        return module.added_kv_proj_dim is not None
