"""TIPSv2: class token, registers, patches."""

from hf_spectral.families.transformers.base import VisionFamily

TIPSV2 = VisionFamily(
    ("tipsv2_vision_model",), num_prefix=lambda config: 1 + config.num_register_tokens, reads_any_size=True
)
