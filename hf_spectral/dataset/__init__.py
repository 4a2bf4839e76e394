"""A whole dataset: fit one basis in a stream, and write every image's eigenvectors as rows."""

from hf_spectral.dataset.fitting import fit
from hf_spectral.dataset.reading import FitReport
from hf_spectral.dataset.source import Skipped
from hf_spectral.dataset.transforming import transform

__all__ = ["FitReport", "Skipped", "fit", "transform"]
