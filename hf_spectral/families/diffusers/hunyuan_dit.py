"""HunyuanDiT: DiT with rotary positions, and text of two encoders by cross-attention."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised


class HunyuanDiT(DenoiserFamily):
    """`HunyuanDiT2DModel`; the models up to 1.1 are also given a size and a style."""

    class_name = "HunyuanDiT2DModel"
    example = "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers"
    prompt_pipeline = "HunyuanDiTPipeline"

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt with both text encoders."""
        told = {"device": device, "do_classifier_free_guidance": False}
        second = {name.removesuffix("_2"): given.pop(name) for name in list(given) if name.endswith("_2")}
        states, _, mask, _ = host.encode_prompt(prompt, **told, **given)
        others = host.encode_prompt(prompt, **told, **second, text_encoder_index=1)
        return Condition(states, mask, others={"states": others[0], "mask": others[2]})

    def zeros(self, config: Any) -> Condition:
        """Return the 77 tokens of CLIP and the 256 of T5, all padding."""
        first, second = config.text_len, config.text_len_t5
        others = {
            "states": torch.zeros(1, second, config.cross_attention_dim_t5),
            "mask": torch.zeros(1, second).long(),
        }
        return Condition(torch.zeros(1, first, config.cross_attention_dim), torch.zeros(1, first).long(), others=others)

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add both prompts with their masks, size, style and rotations, as the host does."""
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        patch, condition = denoiser.config.patch_size, noised.condition
        size = (noised.latents.shape[-2] // patch, noised.latents.shape[-1] // patch)
        region = get_resize_crop_region_for_grid(size, 512 // 8 // patch)
        width = denoiser.inner_dim // denoiser.num_heads
        return super().arguments(denoiser, noised) | {
            "timestep": noised.timestep.to(noised.latents.dtype),
            "text_embedding_mask": condition.mask,
            "encoder_hidden_states_t5": condition.others["states"],
            "text_embedding_mask_t5": condition.others["mask"],
            "image_meta_size": noised.for_each([1024, 1024, *noised.size, 0, 0]),
            "style": torch.zeros_like(noised.timestep, dtype=torch.long),
            "image_rotary_emb": get_2d_rotary_pos_embed(
                width, region, size, device=noised.latents.device, output_type="pt"
            ),
        }
