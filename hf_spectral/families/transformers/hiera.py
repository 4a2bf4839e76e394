"""Hiera: tokens are unrolled so that those that a query pools lie one stride apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_spectral.families.attention_call import AttentionCall, LayerSkipped
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.grid import TokenGrid, as_pair


@dataclasses.dataclass(frozen=True)
class Hiera(VisionFamily):
    """Layers whose queries are not pooled."""

    has_fused_projection: bool = True
    interpolates: bool = False  # It reorders its tokens by the configured size alone.

    def arrange(self, call: TowerCall) -> Arranged:
        """Bring the unrolled tokens of a layer into raster order."""
        tower: Any = call.tower
        if tower.embeddings.is_mae:
            raise LayerSkipped("the backbone masks patches at random; load it as HieraModel")
        layer: Any = tower.get_submodule(call.path)
        if layer.query_stride > 1:
            raise LayerSkipped("it pools its queries, so query and key lie on different grids")
        window = layer.use_mask_unit_attn and layer.window_size
        return to_raster(call.attention, call.patch_map(), tower.unroll_schedule, window)


def to_raster(attention: AttentionCall, grid: tuple[int, int], strides: Sequence[Any], window: int) -> Arranged:
    """Bring the unrolled tokens of a layer into raster order.

    Args:
        attention: Query, key and value as the layer has them.
        grid: Rows and columns of the patches of the picture.
        strides: What each pooling takes together, of all stages.
        window: Tokens of a window, or 0 if the layer compares all tokens.

    Returns:
        The arranged call, on the grid of the layer's stage.
    """
    height, width = grid
    schedule = [as_pair(stride) for stride in strides]
    while schedule and height * width > attention.query.shape[-2]:
        (stride_height, stride_width), *schedule = schedule
        height, width = height // stride_height, width // stride_width
    layout = TokenGrid(height, width)
    raster_to_layer = _unrolled_order(height, width, schedule).argsort().to(attention.query.device)
    ordered = attention.on_grid(layout).apply(lambda tokens: tokens[..., raster_to_layer, :])
    return Arranged(ordered, layout, windowed=0 < window < layout.num_nodes)


def _unrolled_order(height: int, width: int, schedule: list[tuple[int, int]]) -> Tensor:
    """Return the raster index of the token that lies at each position of an unrolled sequence."""
    order = torch.arange(height * width).reshape(1, height, width)
    for stride_height, stride_width in schedule:
        groups, height, width = order.shape
        order = order.reshape(groups, height // stride_height, stride_height, width // stride_width, stride_width)
        order = order.permute(0, 2, 4, 1, 3).reshape(-1, height // stride_height, width // stride_width)
    return order.reshape(-1)


HIERA = Hiera(("hiera",), example="facebook/hiera-tiny-224-hf")
