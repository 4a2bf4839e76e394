"""timm's Hiera: unrolled tokens; windows are an axis of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_spectral.families.transformers.base import Arranged, TowerCall
from hf_spectral.families.transformers.hiera import to_raster
from hf_spectral.families.transformers.timm import Timm


def _unrolled(call: TowerCall, module: Any, grid: tuple[int, int]) -> Arranged:
    layer: Any = call.tower.get_submodule(call.path)
    attention = call.attention.apply(_without_windows)
    return to_raster(attention, grid, module.unroll.schedule, layer.use_mask_unit_attn and layer.window_size)


def _without_windows(tokens: Tensor) -> Tensor:
    return tokens.transpose(2, 3).flatten(2, 3) if tokens.ndim == 5 else tokens


TIMM_HIERA = Timm(
    ("timm.Hiera",),
    lay_out=_unrolled,
    example="timm/hiera_base_224.mae_in1k_ft_in1k",
    pathways="where from the global layers, what from all",
)
