"""A tiny Flux 2, with a decoder deep enough for the layers that it reads."""

import diffusers

from tests.families.denoisers import TinyPipeline
from tests.pipelines.tiny_diffusion import chat_tokenizer, gemma_text


def _build():
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 24,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()
    autoencoder.bn.running_mean.normal_()
    autoencoder.bn.running_var.uniform_(0.5, 2)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = (
        "{% for one in messages %}{% for part in one.content %}{{ part.text }}{% endfor %}{% endfor %}"
    )
    return diffusers.Flux2Pipeline(scheduler, autoencoder, gemma_text(num_hidden_layers=31), tokenizer, transformer)


CALL = {"prompt": "a cat", "height": 32, "width": 32, "output_type": "latent"}
TINY = TinyPipeline(_build, grid=(5, 8), call=CALL, prompt="a cat", step=lambda told: 1000 * told)
