"""Symmetric linear maps on the nodes of a graph: operators that store an affinity, and wrappers that combine them.

Every operator multiplies a block of vectors without forming its matrix; `to_dense` forms it, for tests and for problems
small enough to profit. An operator is abstract or final: to change one, wrap it.
"""

from hf_spectral.operators.base import AffinityOperator, Degree, Matrix, SumOperator, Vectors
from hf_spectral.operators.kernels import (
    AttentionOperator,
    ExponentialOperator,
    KernelOperator,
    cosine_spread,
    symmetric_product,
    symmetrize_,
)
from hf_spectral.operators.leaves import DenseOperator, GramOperator, IdentityOperator, SparseOperator, cosine_gram
from hf_spectral.operators.neighbors import nearest_neighbors, neighbor_graph
from hf_spectral.operators.wrappers import NormalizedOperator, ResampledOperator, inverse_root_degree

__all__ = [
    "AffinityOperator",
    "AttentionOperator",
    "Degree",
    "DenseOperator",
    "ExponentialOperator",
    "GramOperator",
    "IdentityOperator",
    "KernelOperator",
    "Matrix",
    "NormalizedOperator",
    "ResampledOperator",
    "SparseOperator",
    "SumOperator",
    "Vectors",
    "cosine_gram",
    "cosine_spread",
    "inverse_root_degree",
    "nearest_neighbors",
    "neighbor_graph",
    "symmetric_product",
    "symmetrize_",
]
