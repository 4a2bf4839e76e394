"""A tiny Chroma."""

import diffusers

from tests.families.denoisers import TinyPipeline
from tests.pipelines.tiny_diffusion import t5_text, t5_tokenizer, vae


def _build():
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    autoencoder = vae(shift_factor=0.1)
    return diffusers.ChromaPipeline(scheduler, autoencoder, t5_text(), t5_tokenizer(), transformer)


CALL = {"prompt": "a cat", "height": 32, "width": 32, "output_type": "latent", "guidance_scale": 0.0}
TINY = TinyPipeline(_build, grid=(5, 8), call=CALL, prompt="a cat", step=lambda told: 1000 * told)
