"""BEiT and Data2Vec-Vision: a class token, then patches; the relative position bias is no part of a record."""

from hf_spectral.families.transformers.base import VisionFamily

BEIT = VisionFamily(("beit",), num_prefix=1, reads_any_size=True, example="microsoft/beit-base-patch16-224")
DATA2VEC_VISION = VisionFamily(("data2vec-vision",), num_prefix=1, example="facebook/data2vec-vision-base")
