"""A tiny AuraFlow."""

import diffusers

from tests.families.denoisers import TinyPipeline
from tests.pipelines.tiny_diffusion import t5_text, t5_tokenizer, vae


def _build():
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.AuraFlowPipeline(t5_tokenizer(), t5_text(), vae(), transformer, scheduler)


CALL = {"prompt": "a cat", "height": 32, "width": 32, "output_type": "latent", "guidance_scale": 1.0}
TINY = TinyPipeline(_build, grid=(5, 8), call=CALL, prompt="a cat", step=lambda told: 1000 * told)
