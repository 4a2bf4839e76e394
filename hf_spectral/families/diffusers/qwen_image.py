"""Qwen-Image: double-stream blocks, text tokens first, latents packed two by two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_spectral.families.attention_call import LayerSkipped
from hf_spectral.families.diffusers.base import Condition, Noised
from hf_spectral.families.diffusers.packed import Packed


class QwenImage(Packed):
    """`QwenImageTransformer2DModel`; its layers are told the rotations of image and prompt apart."""

    class_name = "QwenImageTransformer2DModel"
    example = "Qwen/Qwen-Image"
    prompt_pipeline = "QwenImagePipeline"
    empty_tokens = 5
    rotates = False
    max_prompt_tokens = 1024
    other_pipelines = "Edit|Layered"

    def refusal(self, config: Any) -> str | None:
        """Refuse the models that are shown a picture to edit, or several layers of one."""
        further = [name for name in ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope") if config.get(name)]
        return f"it is shown further pictures: {', '.join(further)}" if further else None

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt, and leave out padding, which the host masks."""
        states, mask = host.encode_prompt(prompt, device=device, **given)
        return Condition(states if mask is None else states[mask.bool()][None])

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Pack the latents, and tell the map of the packs."""
        from diffusers import QwenImagePipeline

        count, channels, height, width = noised.latents.shape
        return {
            "hidden_states": QwenImagePipeline._pack_latents(noised.latents, count, channels, height, width),
            "encoder_hidden_states": noised.condition.states,
            "timestep": noised.share,
            "img_shapes": [[(1, height // 2, width // 2)]] * count,
        }

    def token_map(self, denoiser: Any, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Read rows and columns from the shapes."""
        shapes = inputs["img_shapes"][0]
        (frames, height, width), *others = shapes if isinstance(shapes, list) else [shapes]
        if others or frames != 1:
            raise LayerSkipped("its image tokens are not one map: `img_shapes` hold several images")
        return height, width
