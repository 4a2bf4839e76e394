"""Sapiens 2: class token, registers, patches with rotary positions."""

from hf_spectral.families.transformers.base import VisionFamily

SAPIENS2 = VisionFamily(("sapiens2",), num_prefix=lambda config: 1 + config.num_register_tokens, reads_any_size=True)
