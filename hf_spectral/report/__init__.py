"""How the two pathways run through the depth of a backbone: every layer on its own beside all together."""

from hf_spectral.report.layers import ImageSource, score_layers
from hf_spectral.report.over_dataset import layer_report
from hf_spectral.report.table import LayerReport, ReportRow

__all__ = ["ImageSource", "LayerReport", "ReportRow", "layer_report", "score_layers"]
