"""AuraFlow: double-stream blocks, then blocks of one stream; registers and text tokens first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_spectral.families.diffusers.base import DenoiserFamily, Noised


class AuraFlow(DenoiserFamily):
    """`AuraFlowTransformer2DModel`."""

    class_name = "AuraFlowTransformer2DModel"
    example = "fal/AuraFlow-v0.3"
    prompt_pipeline = "AuraFlowPipeline"
    empty_tokens = 256
    is_flow = True
    text = "first"
    max_prompt_tokens = 256

    def max_latents(self, config: Any) -> int | None:
        """Return the side of the square of positions."""
        return int(config.pos_embed_max_size**0.5) * int(config.patch_size)

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Give the timestep as a share of the schedule."""
        return super().arguments(denoiser, noised) | {"timestep": noised.share}

    def num_text_tokens(self, denoiser: Any, inputs: Mapping[str, Any], path: str) -> int:
        """Count the registers too."""
        return denoiser.register_tokens.shape[1] + super().num_text_tokens(denoiser, inputs, path)
