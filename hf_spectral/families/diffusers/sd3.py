"""Stable Diffusion 3 and 3.5: double-stream blocks, image tokens first."""

from __future__ import annotations

from typing import Any

from hf_spectral.families.diffusers.base import DenoiserFamily


class StableDiffusion3(DenoiserFamily):
    """`SD3Transformer2DModel`; the second attention of the 3.5 blocks sees the image alone."""

    class_name = "SD3Transformer2DModel"
    example = "stabilityai/stable-diffusion-3.5-medium"
    prompt_pipeline = "StableDiffusion3Pipeline"
    encoded = ("states", "", "pooled")
    empty_tokens = 333  # 77 of CLIP and 256 of T5.
    is_flow = True
    text = "last"
    max_prompt_tokens = 256

    def sees_text(self, path: str, module: Any) -> bool:
        """Tell by the projections that text tokens have of their own."""
        return module.added_kv_proj_dim is not None
