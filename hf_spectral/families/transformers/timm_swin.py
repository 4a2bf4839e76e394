"""timm's Swin and Swin V2: the map is rolled before it is padded to whole windows, where transformers pads it first."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hf_spectral.families.transformers.base import Arranged, TowerCall
from hf_spectral.families.transformers.swin import block_of, logit_scale
from hf_spectral.families.transformers.timm import Timm
from hf_spectral.families.transformers.windows import from_windows


def _windows(call: TowerCall, module: Any, grid: tuple[int, int]) -> Arranged:
    block, stage = block_of(call)
    height, width = (math.ceil(length / 2**stage) for length in grid)
    window, shift = tuple(block.window_size), tuple(block.shift_size)
    return from_windows(call, (height, width), window, shift, rolls_padding=False)


def _scaled_windows(call: TowerCall, module: Any, grid: tuple[int, int]) -> Arranged:
    attention = dataclasses.replace(call.attention, query=call.attention.query * logit_scale(call))
    return _windows(dataclasses.replace(call, attention=attention), module, grid)


_PATHWAYS = "where from layers whose window is the whole map, what from all"
TIMM_SWIN = Timm(
    ("timm.SwinTransformer",),
    lay_out=_windows,
    example="timm/swin_tiny_patch4_window7_224.ms_in1k",
    pathways=_PATHWAYS,
)
TIMM_SWIN_V2 = Timm(
    ("timm.SwinTransformerV2",),
    lay_out=_scaled_windows,
    example="timm/swinv2_tiny_window8_256.ms_in1k",
    pathways=_PATHWAYS,
)
