"""DINOv3 ViT: class token, registers, patches with rotary positions."""

from hf_spectral.families.transformers.base import VisionFamily

DINOV3_VIT = VisionFamily(
    ("dinov3_vit",),
    num_prefix=lambda config: 1 + config.num_register_tokens,
    reads_any_size=True,
    example="facebook/dinov3-vits16-pretrain-lvd1689m",
)
