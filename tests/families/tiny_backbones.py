"""Tiny random backbones, one per family, for every test that needs one."""

import dataclasses
from collections.abc import Callable

import torch
import transformers as hf
from torch import nn
from transformers import BitImageProcessor

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A recipe for a tiny backbone and what its capture must look like.

    Args:
        build: Builds the model; the caller seeds torch.
        image_size: Height and width of the images it is shown.
        grids: Rows and columns of each recorded layer.
        num_prefix: Tokens before the patches.
        windowed: For each recorded layer, whether it compares within windows only.
        forward: Further arguments of the forward.
        num_skipped: Layers that must be skipped with a reason.
    """

    build: Callable[[], nn.Module]
    image_size: tuple[int, int]
    grids: tuple[tuple[int, int], ...]
    num_prefix: int = 0
    windowed: tuple[bool, ...] = (False, False, False)
    forward: dict = dataclasses.field(default_factory=dict)
    num_skipped: int = 0

    def model(self, seed: int = 0) -> nn.Module:
        """Build the model in evaluation mode, every parameter random (position embeddings often start as zeros)."""
        torch.manual_seed(seed)
        model = self.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim:
                    parameter.normal_(std=0.2)
        return model

    def images(self, count: int = 2, seed: int = 1) -> torch.Tensor:
        """Return random images."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3, *self.image_size, generator=generator)


def build_vit(**settings):
    return hf.ViTModel(hf.ViTConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=8, **settings))


def build_deit():
    return hf.DeiTModel(hf.DeiTConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=8))


def build_dinov2(**settings):
    return hf.Dinov2Model(hf.Dinov2Config(**SIZES, image_size=64, patch_size=8, **settings))


def build_dinov2_with_registers():
    config = hf.Dinov2WithRegistersConfig(**SIZES, image_size=64, patch_size=8, num_register_tokens=3)
    return hf.Dinov2WithRegistersModel(config)


def build_dinov3(**settings):
    config = hf.DINOv3ViTConfig(
        **SIZES, intermediate_size=64, image_size=64, patch_size=8, num_register_tokens=2, **settings
    )
    return hf.DINOv3ViTModel(config)


def build_vit_mae():
    return hf.ViTMAEModel(hf.ViTMAEConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=8))


def build_clip_vision():
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=8))


def build_clip():
    vision = {**SIZES, "intermediate_size": 64, "image_size": 64, "patch_size": 8}
    text = {**SIZES, "intermediate_size": 64, "vocab_size": 50, "num_hidden_layers": 2, "eos_token_id": 49}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def build_siglip_vision():
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=8))


def build_siglip2_vision():
    config = hf.Siglip2VisionConfig(**SIZES, intermediate_size=64, num_patches=64, patch_size=8)
    return hf.Siglip2VisionModel(config)


def build_beit():
    config = hf.BeitConfig(
        **SIZES,
        intermediate_size=64,
        image_size=(64, 48),
        patch_size=8,
        use_relative_position_bias=True,
        use_mask_token=False,
    )
    return hf.BeitModel(config)


def build_data2vec_vision():
    config = hf.Data2VecVisionConfig(
        **SIZES, intermediate_size=64, image_size=64, patch_size=8, use_relative_position_bias=True
    )
    return hf.Data2VecVisionModel(config)


def build_ijepa():
    return hf.IJepaModel(hf.IJepaConfig(**SIZES, intermediate_size=64, image_size=64, patch_size=8))


def build_swin():
    config = hf.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, qkv_bias=True
    )
    return hf.SwinModel(config)


def build_swinv2():
    config = hf.Swinv2Config(
        image_size=64, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, qkv_bias=True
    )
    return hf.Swinv2Model(config)


def build_hiera():
    config = hf.HieraConfig(
        image_size=[64, 96],
        patch_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        embed_dim=16,
        depths=[2, 2, 2],
        num_heads=[2, 2, 4],
        embed_dim_multiplier=2.0,
        num_query_pool=2,
        query_stride=[2, 2],
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, True, False],
    )
    return hf.HieraModel(config)


def build_sam_vision():
    config = hf.SamVisionConfig(
        **SIZES,
        mlp_dim=64,
        output_channels=16,
        image_size=56,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1],
        num_pos_feats=8,
    )
    return hf.SamVisionModel(config)


def naflex_inputs(grid=(6, 4), count=2, padding=5, patch_size=8, seed=1):
    """Return what the SigLIP 2 NaFlex processor would: flattened patches, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    real = grid[0] * grid[1]
    pixel_values = torch.zeros(count, real + padding, 3 * patch_size**2)
    pixel_values[:, :real] = torch.randn(count, real, 3 * patch_size**2, generator=generator)
    mask = torch.zeros(count, real + padding, dtype=torch.int32)
    mask[:, :real] = 1
    return {
        "pixel_values": pixel_values,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([grid] * count),
    }


_INTERPOLATE = {"interpolate_pos_encoding": True}
_THREE = ((8, 6),) * 3

# Families that take plain images. 64 x 48 pixels at 8 pixels a patch are 8 x 6 patches.
BACKBONES = {
    "vit": Tiny(build_vit, (64, 48), _THREE, 1, forward=_INTERPOLATE),
    "deit": Tiny(build_deit, (64, 48), _THREE, 2, forward=_INTERPOLATE),
    "dinov2": Tiny(build_dinov2, (64, 48), _THREE, 1),
    "dinov2_with_registers": Tiny(build_dinov2_with_registers, (64, 48), _THREE, 4),
    "dinov3_vit": Tiny(build_dinov3, (64, 48), _THREE, 3),
    "clip_vision": Tiny(build_clip_vision, (64, 48), _THREE, 1, forward=_INTERPOLATE),
    "siglip_vision": Tiny(build_siglip_vision, (64, 48), _THREE, 0, forward=_INTERPOLATE),
    "beit": Tiny(build_beit, (64, 48), _THREE, 1),
    "data2vec_vision": Tiny(build_data2vec_vision, (64, 64), ((8, 8),) * 3, 1),
    "ijepa": Tiny(build_ijepa, (64, 48), _THREE, 0, forward=_INTERPOLATE),
    # 60 x 52 pixels are 15 x 13 patches: windows of 4 need padding in both stages, odd blocks are shifted.
    "swin": Tiny(build_swin, (60, 52), ((15, 13),) * 2 + ((8, 7),) * 2, windowed=(True,) * 4, forward=_INTERPOLATE),
    "swinv2": Tiny(build_swinv2, (60, 52), ((15, 13),) * 2 + ((8, 7),) * 2, windowed=(True,) * 4, forward=_INTERPOLATE),
    # The first block of the second and of the third stage pools its queries.
    "hiera": Tiny(
        build_hiera,
        (64, 96),
        ((16, 24), (16, 24), (8, 12), (4, 6)),
        windowed=(True, True, True, False),
        num_skipped=2,
    ),
    # 7 x 7 patches in windows of 4 need padding; the second layer is global.
    "sam_vision": Tiny(build_sam_vision, (56, 56), ((7, 7),) * 3, windowed=(True, False, True)),
}


PROCESSOR = BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def saved_backbone(folder):
    """Save a tiny random DINOv2 with its processor, as a user's folder would hold them."""
    BACKBONES["dinov2"].model().save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return str(folder)


def build_convnext():
    return hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))


def build_bert():
    return hf.BertModel(
        hf.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, vocab_size=20)
    )
