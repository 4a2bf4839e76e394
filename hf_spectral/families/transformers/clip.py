"""The vision towers of CLIP and BLIP: a class token, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

CLIP = VisionFamily(("clip_vision_model",), num_prefix=1, example="openai/clip-vit-base-patch32")
BLIP = VisionFamily(
    ("blip_vision_model",), num_prefix=1, has_fused_projection=True, example="Salesforce/blip-image-captioning-base"
)
