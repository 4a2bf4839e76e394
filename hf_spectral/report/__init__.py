"""Reports on the layers of a backbone: scores of each layer and of all layers together, and the list of layers."""

from hf_spectral.report.listing import LayerListing, LayerRow, list_layers
from hf_spectral.report.scores import ImageSource, layer_report, score_layers
from hf_spectral.report.table import LayerReport, ReportRow

__all__ = [
    "ImageSource",
    "LayerListing",
    "LayerReport",
    "LayerRow",
    "ReportRow",
    "layer_report",
    "list_layers",
    "score_layers",
]
