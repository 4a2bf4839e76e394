"""A tiny CogView 4."""

import diffusers

from tests.families.denoisers import TinyPipeline
from tests.pipelines.tiny_diffusion import gemma_text, t5_tokenizer, vae


def _build():
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=24,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=16,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.CogView4Pipeline(t5_tokenizer(), gemma_text(), vae(), transformer, scheduler)


CALL = {"prompt": "a cat", "height": 32, "width": 32, "output_type": "latent", "guidance_scale": 1.0}
TINY = TinyPipeline(_build, grid=(5, 8), call=CALL, prompt="a cat")
