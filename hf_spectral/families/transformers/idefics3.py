"""Idefics 3 and SmolVLM: patches only, in a grid of the picture's own proportions."""

from hf_spectral.families.transformers.base import VisionFamily

IDEFICS3 = VisionFamily(
    ("idefics3_vision", "smolvlm_vision"), reads_any_size=True, example="HuggingFaceTB/SmolVLM-256M-Instruct"
)
