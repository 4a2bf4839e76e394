"""From eigenvectors to labels: segments and instances of one image, clusters of a whole dataset."""

from hf_spectral.segmentation.embedding import spectral_embedding
from hf_spectral.segmentation.instances import Instance, instances
from hf_spectral.segmentation.partition import SegmentationMethod, segment
from hf_spectral.segmentation.region_tree import RegionTree, working_copy
from hf_spectral.segmentation.segments import Segmentation
from hf_spectral.segmentation.semantic import (
    find_clusters,
    label_image,
    leading_eigenvectors,
    sample_tokens,
    semantic_segmentation,
)
from hf_spectral.segmentation.upsampling import upsample

__all__ = [
    "Instance",
    "RegionTree",
    "Segmentation",
    "SegmentationMethod",
    "find_clusters",
    "instances",
    "label_image",
    "leading_eigenvectors",
    "sample_tokens",
    "segment",
    "semantic_segmentation",
    "spectral_embedding",
    "upsample",
    "working_copy",
]
