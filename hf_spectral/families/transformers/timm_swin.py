"""timm's Swin and Swin V2: the map is rolled before it is padded to whole windows, where transformers pads it first."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from hf_spectral.families.attention_call import LayerSkipped
from hf_spectral.families.transformers.base import Arranged, TowerCall
from hf_spectral.families.transformers.timm import Timm
from hf_spectral.families.transformers.windows import unwindow
from hf_spectral.grid import TokenGrid


def _windows(call: TowerCall, module: Any, grid: tuple[int, int]) -> Arranged:
    place = re.search(r"layers\.(\d+)\.blocks\.\d+", call.path)
    if place is None:
        raise LayerSkipped("it lies outside the stages of the backbone")
    block: Any = call.tower.get_submodule(call.path[: place.end()])
    height, width = (math.ceil(length / 2 ** int(place[1])) for length in grid)
    images, window, shift = call.pixels.shape[0], tuple(block.window_size), tuple(block.shift_size)
    attention = call.attention.apply(
        lambda tokens: unwindow(tokens, images, (height, width), window, shift, rolls_padding=False)
    )
    return Arranged(attention, TokenGrid(height, width), windowed=window[0] < height or window[1] < width)


def _scaled_windows(call: TowerCall, module: Any, grid: tuple[int, int]) -> Arranged:
    layer: Any = call.tower.get_submodule(call.path)
    scale = layer.logit_scale.detach().clamp(max=math.log(100.0)).exp()
    attention = dataclasses.replace(call.attention, query=call.attention.query * scale)
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
