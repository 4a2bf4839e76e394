"""One spectral problem over all tokens of a whole dataset, in a stream; its solution is a small model."""

from hf_spectral.basis.accumulator import BasisAccumulator
from hf_spectral.basis.model import DEFAULT_WALK, Projector, SpectralBasis, as_basis

__all__ = ["DEFAULT_WALK", "BasisAccumulator", "Projector", "SpectralBasis", "as_basis"]
