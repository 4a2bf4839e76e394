"""From finished totals to a basis."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from hf_spectral.basis.model import SpectralBasis
from hf_spectral.basis.pencil import Pencil, leading_eigenpairs
from hf_spectral.basis.totals import Totals
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.version import __version__


def solve_totals(
    totals: Totals,
    config: SpectralConfig,
    weights: Sequence[float],
    seed: int,
    max_width: int | None,
    backbone: dict[str, Any],
    exactly: bool = True,
) -> SpectralBasis:
    """Find the leading eigenvectors and fold weights and signs into one projection a layer.

    Args:
        totals: Both passes, finished.
        config: With the number of eigenvectors wanted.
        weights: One a layer, together 1; layers of weight 0 take no part.
        seed: Seed of the start vectors.
        max_width: For the record.
        backbone: For the record.
        exactly: False takes all eigenvectors there are where fewer exist than wanted.

    Returns:
        The basis.

    Raises:
        SpectralError: If fewer eigenvectors exist, and `exactly` so many were wanted.
    """
    used = [position for position, weight in enumerate(weights) if weight > 0]
    ranks = [totals.ranks[position] for position in used]
    signs = [totals.signs[position] for position in used]
    sums = [totals.sums[position] for position in used]
    roots = torch.cat([torch.full_like(part, weights[i] ** 0.5) for i, part in zip(used, signs, strict=True)])
    gram = totals.start_gram().symmetrize_().restricted(used)
    pairs = leading_eigenpairs(Pencil(gram, roots, torch.cat(signs)), config.num_eigenvectors, seed)
    if len(pairs.values) < config.num_eigenvectors and exactly:
        raise SpectralError(
            "num_eigenvectors",
            expected=f"at most the {len(pairs.values)} that the tokens of {totals.num_in_gram} images determine",
            got=config.num_eigenvectors,
            fix="Ask for fewer, or fit on more images that differ",
        )
    projection = roots[:, None] * pairs.vectors
    # The trivial eigenvector has entries of one sign (Perron and Frobenius): positive ones.
    if torch.cat(sums) @ projection[:, 0] < 0:
        projection[:, 0] *= -1
    return SpectralBasis(
        eigenvalues=(1 - pairs.values).float().cpu(),
        residuals=pairs.residuals.float().cpu(),
        projections=tuple(part.float().cpu().contiguous() for part in projection.split(ranks)),
        sums=tuple((sign * total).cpu() for sign, total in zip(signs, sums, strict=True)),
        num_tokens=totals.num_tokens[used].cpu(),
        layers=tuple(totals.layers[position] for position in used),
        weights=tuple(weights[position] for position in used),
        num_images=totals.num_in_gram,
        num_nodes=totals.num_nodes,
        config=dataclasses.replace(config, num_eigenvectors=len(pairs.values)),
        max_width=max_width,
        backbone=backbone,
        versions={"torch": str(torch.__version__), "hf_spectral": __version__},
    )
