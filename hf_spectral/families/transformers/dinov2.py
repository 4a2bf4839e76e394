"""DINOv2, with and without registers."""

from hf_spectral.families.transformers.base import VisionFamily

DINOV2 = VisionFamily(
    ("dinov2",), num_prefix=1, reads_any_size=True, example="facebook/dinov2-small", tested_on="published weights"
)
DINOV2_WITH_REGISTERS = VisionFamily(
    ("dinov2_with_registers",),
    num_prefix=lambda config: 1 + config.num_register_tokens,
    reads_any_size=True,
    example="facebook/dinov2-with-registers-small",
)
