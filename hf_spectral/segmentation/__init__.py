"""From the eigenvectors of one image to labels, to a number of segments and to instances."""

from hf_spectral.segmentation.embedding import spectral_embedding
from hf_spectral.segmentation.instances import Instance, instances
from hf_spectral.segmentation.partition import Segmentation, SegmentationMethod, segment
from hf_spectral.segmentation.upsampling import upsample

__all__ = ["Instance", "Segmentation", "SegmentationMethod", "instances", "segment", "spectral_embedding", "upsample"]
