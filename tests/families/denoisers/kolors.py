"""A tiny Kolors without its text encoder, whose tokenizer needs a file of sentencepiece."""

import diffusers

from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from tests.families.denoisers import TinyPipeline
from tests.families.tiny_denoisers import build_unet
from tests.pipelines.tiny_diffusion import vae


def _build():
    unet = build_unet(
        cross_attention_dim=24,
        encoder_hid_dim=20,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
    )
    # The host's own pipeline cannot be built without sentencepiece either.
    return SpectralDiffusionPipeline(diffusers.EulerDiscreteScheduler(steps_offset=1), unet=unet, vae=vae())


TINY = TinyPipeline(_build, grid=(12, 16), num_grids=3)
