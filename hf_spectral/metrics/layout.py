"""How much of an eigenvector of a single image a smooth function of position explains."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.config import require_positive_int


def layout_score(
    eigenvectors: Float[Tensor, "eigenvectors height width"], order: int = 3
) -> Float[Tensor, " eigenvectors"]:
    """Share of each eigenvector's variance within one image that a smooth function of position explains.

    R^2 of the trend surface: the least-squares polynomial in row and column of total degree `order`. It is the stand-in
    for `where_score` where there is one image only: `where_score` asks whether other images have the same map, this
    asks whether the map is a gradual one. An object that fills half of the picture scores here, too.

    Args:
        eigenvectors: Maps of one image.
        order: Total degree of the polynomial, at least 1; cubic has 10 terms.

    Returns:
        One value an eigenvector, 0 to 1; 1: a polynomial of position, 0: no trend. A constant eigenvector scores 0. A
        map of noise scores about 9 terms over the number of tokens.

    Raises:
        SpectralError: If `order` is no positive integer.

    Reference:
        Trend surface analysis: Krumbein, J. Geophys. Res. 1959; Chorley and Haggett, Trans. Inst. Brit. Geogr. 1965.
    """
    require_positive_int("order", order)
    count, height, width = eigenvectors.shape
    down = torch.linspace(-1, 1, height, dtype=torch.float64) if height > 1 else torch.zeros(1, dtype=torch.float64)
    across = torch.linspace(-1, 1, width, dtype=torch.float64) if width > 1 else torch.zeros(1, dtype=torch.float64)
    terms = [
        (down[:, None] ** row * across[None, :] ** column).flatten()
        for row in range(order + 1)
        for column in range(order + 1 - row)
    ]
    values = eigenvectors.detach().cpu().double().reshape(count, -1).T
    centered = values - values.mean(0)
    # The singular value decomposition also serves grids with fewer rows than terms, whose columns depend on each other.
    basis, strengths, _ = torch.linalg.svd(torch.stack(terms, dim=1), full_matrices=False)
    basis = basis[:, strengths > 1e-10 * strengths[0]]
    explained = (basis.T @ centered).square().sum(0)
    total = centered.square().sum(0)
    # Below rounding, the variance of float32 values is none.
    scale = values.square().sum(0).clamp_min(1e-300)
    score = torch.where(total > 1e-12 * scale, explained / total.clamp_min(1e-300), torch.zeros_like(total))
    return score.clamp(0, 1).float()
