"""A tiny Z-Image."""

import diffusers

from tests.families.denoisers import TinyPipeline
from tests.pipelines.tiny_diffusion import chat_tokenizer, gemma_text, vae


def _build():
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 64, 64],
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.ZImagePipeline(scheduler, vae(shift_factor=0.1), gemma_text(), chat_tokenizer(), transformer)


CALL = {"prompt": "a cat", "height": 32, "width": 32, "output_type": "latent", "guidance_scale": 0.0}
TINY = TinyPipeline(_build, grid=(5, 8), call=CALL, prompt="a cat", step=lambda told: 1000 * (1 - told))
