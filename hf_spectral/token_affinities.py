"""What one token of an image is related to: its row of the affinities, layer by layer and all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.checks import is_number
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, finest, pools
from hf_spectral.layer_choice import taking_part
from hf_spectral.problem import Weight, affinity_operators, normalized
from hf_spectral.records import AttentionRecord, SkippedLayer
from hf_spectral.torch_state import plain_torch


@dataclasses.dataclass(frozen=True)
class TokenAffinity:
    """One row of the normalized affinities of an image.

    Args:
        joint: Weighted mean of S over the layers: the token's row of the matrix A that `build_problem` forms.
        layers: By layer index, in call order: the row of that layer's S, on the layer's own grid, averaged over the
            timesteps at which the layer was read.
        token: Row and column of the token on the grid of `joint`.
        grid: The common grid.
        skipped: Layers that cannot serve the pathway or have no weight, with reasons.
    """

    joint: Float[Tensor, "height width"]
    layers: dict[int, Float[Tensor, "_height _width"]]
    token: tuple[int, int]
    grid: TokenGrid
    skipped: tuple[SkippedLayer, ...] = ()


@plain_torch()
def token_affinity(
    records: Iterable[AttentionRecord],
    position: tuple[float | int, float | int],
    config: SpectralConfig | None = None,
) -> TokenAffinity:
    """Return how strongly one token is related to every other of its image.

    With e the indicator of the token on the common grid, layer l gives S_l P_l e on its own grid and all together
    A e = sum_l w_l P_l^T S_l P_l e: what the joint problem knows about the token.

    Args:
        records: The layers of one image, e.g. a `Capture`.
        position: Of the token in the picture: how far down and how far right, each from 0 to 1.
        config: Settings, as for `build_problem`; None takes the defaults.

    Returns:
        Values of at least 0 for every affinity without negative entries.

    Raises:
        SpectralError: If the position lies outside the picture, a record holds several images, or no layer can serve.
    """
    config = config or SpectralConfig()
    is_pair = isinstance(position, (tuple, list)) and len(position) == 2 and all(map(is_number, position))
    if not (is_pair and all(0 <= part <= 1 for part in position)):
        raise SpectralError(
            "position", expected="two numbers from 0 to 1", got=repr(position), fix="Give shares of height and width"
        )
    serving, skipped = taking_part(records, config)
    grid = finest([record.grid for record, _ in serving])
    token = (min(int(position[0] * grid.height), grid.height - 1), min(int(position[1] * grid.width), grid.width - 1))
    joint = torch.zeros(grid.shape, dtype=torch.float32, device=serving[0][0].value.device)
    # One copy to the device for each map, not for each layer.
    axes = {one.shape: pools(grid, one, joint.device) for one in {record.grid for record, _ in serving}}
    layers: dict[int, list[Tensor]] = {}
    total: Weight = 0.0
    for record, weight in serving:
        rows, columns = axes[record.grid.shape]
        start = (rows[:, token[0], None] * columns[None, :, token[1]]).reshape(-1, 1)
        affinities = affinity_operators(record, config)
        own = None if config.layer_weights == "auto" else weight
        terms = [normalized(affinity, 1 / len(affinities), own) for affinity in affinities]
        products = [operator.matmul(start).reshape(len(rows), len(columns)) for operator, _ in terms]
        for product, (_, share) in zip(products, terms, strict=True):
            joint += share * (rows.T @ product @ columns)
            total += share
        layers.setdefault(record.index, []).append(torch.stack(products).mean(0))
    means = {index: torch.stack(found).mean(0) for index, found in layers.items()}
    return TokenAffinity(joint / total, means, token, grid, skipped)
