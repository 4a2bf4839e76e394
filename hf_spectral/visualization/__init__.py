"""Visualizations of eigenvectors, segmentations and scores as PIL images."""

from hf_spectral.visualization.charts import heat_maps, layer_chart
from hf_spectral.visualization.eigenvectors import eigenvector_image, eigenvectors_to_rgb
from hf_spectral.visualization.figures import (
    affinity_spotlight,
    eigenvector_sheet,
    figure,
    pathways_figure,
    segmentation_overlay,
)
from hf_spectral.visualization.palette import segment_colors

__all__ = [
    "affinity_spotlight",
    "eigenvector_image",
    "eigenvector_sheet",
    "eigenvectors_to_rgb",
    "figure",
    "heat_maps",
    "layer_chart",
    "pathways_figure",
    "segment_colors",
    "segmentation_overlay",
]
