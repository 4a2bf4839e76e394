"""A tiny HiDream."""

import diffusers

from tests.families.denoisers import TinyPipeline
from tests.pipelines.tiny_diffusion import (
    chat_tokenizer,
    clip_text,
    clip_tokenizer,
    gemma_text,
    t5_text,
    t5_tokenizer,
    vae,
)


def _build():
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[24, 24],
        text_emb_dim=40,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 4, 8),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
    )
    return diffusers.HiDreamImagePipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(),
        vae(shift_factor=0.1),
        clip_text(with_projection=True, max_position_embeddings=218),
        clip_tokenizer(),
        clip_text(with_projection=True, max_position_embeddings=218),
        clip_tokenizer(),
        t5_text(),
        t5_tokenizer(),
        gemma_text(),
        chat_tokenizer(),
        transformer,
    )


CALL = {"prompt": "a cat", "height": 32, "width": 32, "output_type": "latent", "guidance_scale": 0.0}
TINY = TinyPipeline(_build, grid=(5, 8), call=CALL, prompt="a cat", same_size=False)
