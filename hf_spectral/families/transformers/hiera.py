"""Hiera: tokens are unrolled so that those that a query pools lie one stride apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from hf_spectral.families.attention_call import LayerSkipped
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
        height, width = (
            pixels // stride for pixels, stride in zip(call.pixels.shape[-2:], call.config.patch_stride, strict=True)
        )
        schedule = [as_pair(stride) for stride in tower.unroll_schedule]
        while schedule and height * width > call.num_tokens:
            (stride_height, stride_width), *schedule = schedule
            height, width = height // stride_height, width // stride_width
        grid = TokenGrid(height, width)
        raster_to_layer = _unrolled_order(height, width, schedule).argsort().to(call.attention.query.device)
        attention = call.attention.on_grid(grid).apply(lambda tokens: tokens[..., raster_to_layer, :])
        return Arranged(attention, grid, windowed=layer.use_mask_unit_attn and layer.window_size < grid.num_nodes)


def _unrolled_order(height: int, width: int, schedule: list[tuple[int, int]]) -> Tensor:
    """Return the raster index of the token that lies at each position of an unrolled sequence."""
    order = torch.arange(height * width).reshape(1, height, width)
    for stride_height, stride_width in schedule:
        groups, height, width = order.shape
        order = order.reshape(groups, height // stride_height, stride_height, width // stride_width, stride_width)
        order = order.permute(0, 2, 4, 1, 3).reshape(-1, height // stride_height, width // stride_width)
    return order.reshape(-1)


HIERA = Hiera(("hiera",), example="facebook/hiera-tiny-224-hf")
