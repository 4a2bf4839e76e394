"""Share of the variance of a single image's eigenvectors that a smooth function of position explains."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.checks import require_positive_int
from hf_spectral.torch_state import plain_torch


@plain_torch()
def layout_score(
    eigenvectors: Float[Tensor, "eigenvectors height width"], order: int = 3
) -> Float[Tensor, " eigenvectors"]:
    """Return the share of each eigenvector's variance within one image that a smooth function of position explains.

    The score is R^2 of the trend surface, the least-squares polynomial in row and column of total degree `order`. It
    replaces `where_score` if there is only one image. `where_score` tests whether other images have the same map;
    `layout_score` tests whether the map varies gradually, so an object that fills half of the image also scores high.

    Args:
        eigenvectors: Eigenvectors of one image.
        order: Total degree of the polynomial, at least 1. The default 3 gives 10 terms.

    Returns:
        One score per eigenvector, from 0 (no trend, or constant) to 1 (a polynomial of position). With the default
        order, a map of noise scores about 9 / number of tokens.

    Raises:
        SpectralError: If `order` is not a positive integer.

    Reference:
        Trend surface analysis: Krumbein, J. Geophys. Res. 1959; Chorley and Haggett, Trans. Inst. Brit. Geogr. 1965.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import layout_score
        >>> gradient = torch.linspace(-1, 1, 20).expand(1, 15, 20)
        >>> round(float(layout_score(gradient)), 3)
        1.0
    """
    order = require_positive_int("order", order)
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
    # The SVD also works on grids with fewer rows than terms, where the columns are linearly dependent.
    basis, strengths, _ = torch.linalg.svd(torch.stack(terms, dim=1), full_matrices=False)
    basis = basis[:, strengths > 1e-10 * strengths[0]]
    explained = (basis.T @ centered).square().sum(0)
    total = centered.square().sum(0)
    # A variance below the rounding error of float32 values counts as 0.
    scale = values.square().sum(0).clamp_min(1e-300)
    score = torch.where(total > 1e-12 * scale, explained / total.clamp_min(1e-300), torch.zeros_like(total))
    return score.clamp(0, 1).float()
