"""Pixio: several class tokens, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

PIXIO = VisionFamily(
    ("pixio",), num_prefix=lambda config: config.n_cls_tokens, reads_any_size=True, example="facebook/pixio-huge"
)
