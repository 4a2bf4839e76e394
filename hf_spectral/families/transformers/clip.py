"""The vision towers of CLIP, of models built like it, and of BLIP: a class token, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

CLIP = VisionFamily(("clip_vision_model",), num_prefix=1, example="openai/clip-vit-base-patch32")
LIKE_CLIP = VisionFamily(
    (
        "altclip_vision_model",
        "chinese_clip_vision_model",
        "clipseg_vision_model",
        "git_vision_model",
        "kosmos_2_vision_model",
        "metaclip_2_vision_model",
    ),
    num_prefix=1,
    example="facebook/metaclip-2-worldwide-s16",
)
BLIP = VisionFamily(
    ("blip_vision_model",), num_prefix=1, has_fused_projection=True, example="Salesforce/blip-image-captioning-base"
)
