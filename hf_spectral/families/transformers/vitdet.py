"""ViTDet: windows, and global layers between them; query, key and value are one projection."""

from hf_spectral.families.transformers.sam import Sam

VITDET = Sam(("vitdet",), reads_any_size=True)
