"""Chroma: Flux without guidance and pooled prompt; padding of the prompt is masked."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import Noised
from hf_spectral.families.diffusers.packed import Packed


class Chroma(Packed):
    """`ChromaTransformer2DModel`."""

    class_name = "ChromaTransformer2DModel"
    example = "lodestones/Chroma1-HD"
    prompt_pipeline = "ChromaPipeline"
    encoded = ("states", "", "mask")
    empty_tokens = 512

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Extend the mask of the prompt over the image."""
        told = super().arguments(denoiser, noised)
        mask = told.pop("encoder_attention_mask")
        return told | {"attention_mask": torch.cat([mask, mask.new_ones(told["hidden_states"].shape[:2])], dim=1)}
