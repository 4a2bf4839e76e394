"""DPT: a class token, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

DPT = VisionFamily(("dpt",), num_prefix=1, reads_any_size=True, example="Intel/dpt-large")
