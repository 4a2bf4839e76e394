"""SAM 3: windows, and global layers between them, with rotary positions."""

from hf_spectral.families.transformers.sam import Sam

SAM3 = Sam(("sam3_vit_model",), example="facebook/sam3")
