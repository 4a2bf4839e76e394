"""A tiny HunyuanDiT of version 1.1, which is told size and style."""

import diffusers

from tests.families.denoisers import TinyPipeline
from tests.pipelines.tiny_diffusion import bert_text, bert_tokenizer, t5_text, t5_tokenizer, vae


def _build():
    transformer = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=32,
        num_layers=2,
        cross_attention_dim=24,
        cross_attention_dim_t5=24,
        pooled_projection_dim=16,
    )
    return diffusers.HunyuanDiTPipeline(
        # The host counts eight pixels per latent.
        vae=vae(
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=bert_text(),
        tokenizer=bert_tokenizer(),
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
    )


CALL = {"prompt": "a cat", "height": 128, "width": 128, "output_type": "latent", "guidance_scale": 1.0}
CALL |= {"use_resolution_binning": False}
TINY = TinyPipeline(_build, grid=(5, 8), call=CALL, prompt="a cat", resolution=128)
