"""RADIO: summary tokens, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

RADIO = VisionFamily(
    ("radio",),
    num_prefix=lambda config: config.num_summary_tokens,
    reads_any_size=True,
    example="nvidia/C-RADIOv4-H",
)
