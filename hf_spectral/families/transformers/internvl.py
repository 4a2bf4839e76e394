"""InternVL: a class token, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

INTERNVL = VisionFamily(("internvl_vision",), num_prefix=1, reads_any_size=True, example="OpenGVLab/InternVL3-1B-hf")
