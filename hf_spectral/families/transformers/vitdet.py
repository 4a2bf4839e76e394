"""ViTDet: patches only, as a map; query, key and value are one projection."""

from hf_spectral.families.transformers.base import UnknownFamily

VITDET = UnknownFamily(("vitdet",), has_fused_projection=True)
