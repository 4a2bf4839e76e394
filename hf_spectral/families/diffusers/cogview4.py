"""CogView 4: blocks that join text and image, text tokens first; rotary positions of the image alone."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised


class CogView4(DenoiserFamily):
    """`CogView4Transformer2DModel`."""

    class_name = "CogView4Transformer2DModel"
    example = "zai-org/CogView4-6B"
    is_flow = True
    text = "first"
    max_prompt_tokens = 1024

    def prompt_host(self, denoiser: Any) -> tuple[str | None, dict[str, Any]]:
        """Encode as CogView 4 does."""
        return "CogView4Pipeline", {"transformer": denoiser}

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt, padded to a multiple of 16 tokens."""
        return Condition(host.encode_prompt(prompt, do_classifier_free_guidance=False, device=device, **given)[0])

    def empty_prompt(self, config: Any) -> tuple[int, int, int | None]:
        """Return the 16 tokens of the shortest prompt."""
        return 16, config.text_embed_dim, None

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add the original size, the target size and the crop's corner."""
        size = noised.for_each(list(noised.size))
        told = {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}
        return super().arguments(denoiser, noised) | told
