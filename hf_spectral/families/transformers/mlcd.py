"""MLCD: a class token, then patches with rotary positions."""

from hf_spectral.families.transformers.base import VisionFamily

MLCD = VisionFamily(
    ("mlcd_vision_model",), num_prefix=1, reads_any_size=True, example="DeepGlint-AI/mlcd-vit-bigG-patch14-448"
)
