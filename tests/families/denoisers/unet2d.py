"""A tiny DDPM of pixels: attention at the coarser of two levels and in the middle."""

import diffusers

from tests.families.denoisers import TinyPipeline


def _build():
    unet = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())


TINY = TinyPipeline(_build, grid=(11, 16))
