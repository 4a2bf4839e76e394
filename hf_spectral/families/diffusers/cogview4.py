"""CogView 4: blocks that join text and image, text tokens first; rotary positions of the image alone."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import DenoiserFamily, Noised


class CogView4(DenoiserFamily):
    """`CogView4Transformer2DModel`."""

    class_name = "CogView4Transformer2DModel"
    example = "zai-org/CogView4-6B"
    prompt_pipeline = "CogView4Pipeline"
    empty_tokens = 16
    text_width = "text_embed_dim"
    is_flow = True
    text = "first"
    max_prompt_tokens = 1024

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add the original size, the target size and the crop's corner."""
        size = noised.for_each(list(noised.size))
        told = {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}
        return super().arguments(denoiser, noised) | told
