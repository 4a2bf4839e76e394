"""The backbone of ViTPose: patches only."""

from hf_spectral.families.transformers.base import VisionFamily

VITPOSE = VisionFamily(("vitpose_backbone",), processor_crops=True, example="usyd-community/vitpose-base-simple")
