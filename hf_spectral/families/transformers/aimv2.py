"""AIMv2: patches only."""

from hf_spectral.families.transformers.base import VisionFamily

AIMV2 = VisionFamily(("aimv2_vision_model",), example="apple/aimv2-large-patch14-224")
