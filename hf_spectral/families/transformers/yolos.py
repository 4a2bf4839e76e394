"""YOLOS: a class token, patches, then detection tokens."""

from hf_spectral.families.transformers.base import VisionFamily

YOLOS = VisionFamily(
    ("yolos",),
    num_prefix=1,
    num_suffix=lambda config: config.num_detection_tokens,
    reads_any_size=True,
    example="hustvl/yolos-tiny",
)
