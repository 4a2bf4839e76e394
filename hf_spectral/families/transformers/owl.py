"""The vision towers of OWL-ViT and OWLv2: a class token, then patches."""

from hf_spectral.families.transformers.base import VisionFamily

OWL = VisionFamily(
    ("owlvit_vision_model", "owlv2_vision_model"),
    num_prefix=1,
    processor_crops=True,
    example="google/owlv2-base-patch16-ensemble",
)
