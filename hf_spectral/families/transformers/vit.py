"""ViT, DINO, DeiT, ViT-MSN and I-JEPA: class and distillation tokens, if any, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

VIT = VisionFamily(("vit", "vit_msn"), num_prefix=1, example="google/vit-base-patch16-224")
DEIT = VisionFamily(("deit",), num_prefix=2, example="facebook/deit-base-distilled-patch16-224")
IJEPA = VisionFamily(("ijepa",), example="facebook/ijepa_vith14_1k")
