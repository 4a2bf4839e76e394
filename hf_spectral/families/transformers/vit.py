"""ViT, DINO, DeiT, ViT-MSN and I-JEPA: class and distillation tokens, if any, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

VIT = VisionFamily(("vit", "vit_msn"), num_prefix=1)
DEIT = VisionFamily(("deit",), num_prefix=2)
IJEPA = VisionFamily(("ijepa",))
