"""What one token of an image is related to: its row of the affinities, layer by layer and all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.affinities import affinity_operators
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, area_pooling, finest
from hf_spectral.operators import NormalizedOperator
from hf_spectral.records import AttentionRecord, SkippedLayer, selected


@dataclasses.dataclass(frozen=True)
class TokenAffinity:
    """One row of the normalized affinities of an image.

    Args:
        joint: S averaged over the layers: the token's row of the matrix A that `build_problem` forms.
        layers: By layer index, in call order: the row of that layer's S, on the layer's own grid.
        token: Row and column of the token on the grid of `joint`.
        grid: The common grid.
        skipped: Layers that cannot serve the pathway, with reasons.
    """

    joint: Float[Tensor, "height width"]
    layers: dict[int, Float[Tensor, "_height _width"]]
    token: tuple[int, int]
    grid: TokenGrid
    skipped: tuple[SkippedLayer, ...] = ()


@torch.no_grad()
def token_affinity(
    records: Iterable[AttentionRecord],
    position: tuple[float | int, float | int],
    config: SpectralConfig | None = None,
) -> TokenAffinity:
    """Return how strongly one token is related to every other of its image.

    With e the indicator of the token on the common grid, layer l gives S_l P_l e on its own grid and all together
    A e = mean_l P_l^T S_l P_l e: what the joint problem knows about the token.

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
    if not all(0 <= part <= 1 for part in position):
        raise SpectralError(
            "position", expected="two numbers from 0 to 1", got=position, fix="Give shares of height and width"
        )
    records = selected(records, config.layers)
    refusals = {record.name: record.refusal(config.pathway) for record in records}
    skipped = tuple(SkippedLayer(name, reason) for name, reason in refusals.items() if reason is not None)
    serving = [record for record in records if refusals[record.name] is None]
    if not serving or any(record.num_images != 1 for record in serving):
        raise SpectralError(
            "records",
            expected=f"layers of one image, at least one that can serve {config.pathway!r}",
            got=f"{len(serving)} such layers of {max((record.num_images for record in serving), default=0)} images",
            fix="Use record.image(position), or try pathway='what'",
        )
    grid = finest([record.grid for record in serving])
    token = (min(int(position[0] * grid.height), grid.height - 1), min(int(position[1] * grid.width), grid.width - 1))
    layers = {}
    joint = torch.zeros(grid.height, grid.width, device=serving[0].value.device)
    for record in serving:
        rows = area_pooling(grid.height, record.grid.height).to(joint)
        columns = area_pooling(grid.width, record.grid.width).to(joint)
        start = rows[:, token[0], None] * columns[None, :, token[1]]
        layers[record.index] = _row(record, config, start)
        joint += rows.T @ layers[record.index] @ columns / len(serving)
    return TokenAffinity(joint, layers, token, grid, skipped)


def _row(record: AttentionRecord, config: SpectralConfig, start: Tensor) -> Tensor:
    operators = affinity_operators(record, config)
    products = [NormalizedOperator(operator).matmul(start.reshape(-1, 1)) for operator in operators]
    return torch.stack(products).mean(0).reshape(start.shape)
