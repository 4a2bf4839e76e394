"""A tiny Qwen-Image, with its video autoencoder."""

import diffusers

from tests.families.denoisers import TinyPipeline
from tests.pipelines.tiny_diffusion import chat_tokenizer, gemma_text


def _build():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 8),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.0, 0.9, 1.1, 1.2],
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.QwenImagePipeline(scheduler, autoencoder, gemma_text(), chat_tokenizer(), transformer)


CALL = {"prompt": "a cat", "height": 32, "width": 32, "output_type": "latent"}
TINY = TinyPipeline(_build, grid=(5, 8), call=CALL, prompt="a cat", step=lambda told: 1000 * told)
