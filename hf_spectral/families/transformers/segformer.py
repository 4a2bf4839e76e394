"""SegFormer, PVT and GLPN: their keys are spatially reduced."""

from hf_spectral.families.transformers.base import VisionFamily

REDUCED = VisionFamily(
    ("glpn", "pvt", "pvt_v2", "segformer"),
    refusal="its keys are spatially reduced, so that query and key lie on different grids",
    example="nvidia/mit-b0",
)
