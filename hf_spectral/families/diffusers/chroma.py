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
    prompt_pipeline = "ChromaPipeline"
    empty_tokens = 512

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt with its mask."""
        states, _, mask, *_ = host.encode_prompt(prompt, device=device, do_classifier_free_guidance=False, **given)
        return Condition(states, mask.bool())

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Extend the mask of the prompt over the image."""
        told, mask = super().arguments(denoiser, noised), noised.condition.mask
        assert mask is not None
        return told | {"attention_mask": torch.cat([mask, mask.new_ones(told["hidden_states"].shape[:2])], dim=1)}
