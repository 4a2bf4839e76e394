"""Depth Pro."""

from hf_spectral.families.transformers.base import VisionFamily

DEPTH_PRO = VisionFamily(
    ("depth_pro",),
    refusal="its backbone reads crops of the picture at several scales; give its encoder.image_encoder.model instead",
)
