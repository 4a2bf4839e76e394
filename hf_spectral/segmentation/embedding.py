"""The coordinates that eigenvectors give each token, and clusters of tokens in them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from torch import Tensor

from hf_spectral.checks import require_seed
from hf_spectral.errors import SpectralError
from hf_spectral.result import SpectralResult
from hf_spectral.torch_state import plain_torch

_KMEANS_STARTS = 4


def embedded(
    result: SpectralResult | Float[Tensor, "eigenvectors height width"],
    eigenvalues: Float[Tensor, " eigenvectors"] | None,
    seed: int | None,
) -> tuple[Float[np.ndarray, "nodes channels"], tuple[int, int], int]:
    """Return the embedding of one image, its token grid, and the seed of k-means.

    Args:
        result: A result, or its eigenvectors.
        eigenvalues: One per eigenvector; None beside a result.
        seed: An integer from 0 to 2**32 - 1; None takes that of the result, or 0.

    Returns:
        The embedding in float64, the rows and columns of the grid, and the seed.

    Raises:
        SpectralError: If eigenvalues are missing beside eigenvectors or given beside a result, the seed is invalid, or
            as for `spectral_embedding`.
    """
    if isinstance(result, SpectralResult) and eigenvalues is None:
        eigenvectors, eigenvalues, own_seed = result.eigenvectors, result.eigenvalues, result.config.seed
    elif not isinstance(result, SpectralResult) and eigenvalues is not None:
        eigenvectors, own_seed = result, 0
    else:
        expected, got = "one for each of the eigenvectors", "none"
        if eigenvalues is not None:
            expected, got = "none beside a result, which holds them", str(len(eigenvalues))
        fix = "Call segment(result), or segment(eigenvectors, eigenvalues)"
        raise SpectralError("eigenvalues", expected=expected, got=got, fix=fix)
    seed = require_seed(own_seed if seed is None else seed)
    embedding = spectral_embedding(eigenvectors, eigenvalues).detach().to("cpu", torch.float64).numpy()
    return embedding, (eigenvectors.shape[1], eigenvectors.shape[2]), seed


@plain_torch()
def spectral_embedding(
    eigenvectors: Float[Tensor, "eigenvectors height width"], eigenvalues: Float[Tensor, " eigenvectors"]
) -> Float[Tensor, "nodes channels"]:
    """Give each token its coordinates x_j = (1 - lambda_j) u_j, the trivial eigenvector left out.

    The scale is the token's share in the normalized affinity that eigenvector j explains; without it the last, noisy
    eigenvectors weigh as much as the first.

    Args:
        eigenvectors: Maps of one image, the trivial one at index 0, at least two.
        eigenvalues: Of the normalized Laplacian, ascending, 0 to 2; scales below 0 count as 0.

    Returns:
        One row per token in raster order, one column less than there are eigenvectors.

    Raises:
        SpectralError: If there is only one eigenvector, the numbers do not match, or a value is not finite.
    """
    if len(eigenvectors) != len(eigenvalues):
        raise SpectralError(
            "eigenvalues",
            expected=f"one for each of {len(eigenvectors)} eigenvectors",
            got=len(eigenvalues),
            fix="Pass both as one result gave them",
        )
    if len(eigenvectors) < 2:
        raise SpectralError(
            "num_eigenvectors",
            expected="at least 2, since the one at index 0 is trivial",
            got=len(eigenvectors),
            fix="Solve with num_eigenvectors=16",
        )
    if not (torch.isfinite(eigenvectors).all() and torch.isfinite(eigenvalues).all()):
        raise SpectralError(
            "eigenvectors", expected="finite values", got="NaN or infinity", fix="Look at the result's status"
        )
    scales = (1 - eigenvalues[1:]).clamp_min(0).to(eigenvectors)
    return eigenvectors[1:].flatten(1).T * scales


def kmeans(embedding: np.ndarray, num_segments: int, seed: int) -> np.ndarray:
    """Cluster tokens by k-means.

    Args:
        embedding: One row per token.
        num_segments: Clusters at most; empty ones are left out.
        seed: Seed of the starts.

    Returns:
        Labels from 0, no number missing.
    """
    fitted = KMeans(num_segments, n_init=_KMEANS_STARTS, random_state=seed).fit(embedding)
    return np.unique(fitted.labels_, return_inverse=True)[1].astype(np.int64)


def centroids(embedding: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean of each segment's tokens.

    Args:
        embedding: One row per token.
        labels: Segment of each token, from 0, no number missing.

    Returns:
        One row per segment.
    """
    membership = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))))
    return (membership @ embedding) / np.bincount(labels)[:, None]
