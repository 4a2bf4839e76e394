"""Swin, Donut-Swin, MaskFormer's Swin and Swin V2: windows, shifted in every other block; each stage halves the map."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from torch import nn
from torch.nn.functional import normalize

from hf_spectral.families.attention_call import AttentionCall, LayerSkipped
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.families.transformers.windows import unwindow
from hf_spectral.grid import TokenGrid


@dataclasses.dataclass(frozen=True)
class Swin(VisionFamily):
    """Windows of one stage."""

    reads_any_size: bool = True

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Keep the smallest map as large as a window: the host's tables of biases fit no smaller one."""
        config: Any = tower.config
        rows = (config.window_size - 1) * 2 ** (len(config.depths) - 1) + 1
        geometry = super().geometry(tower)
        return dataclasses.replace(geometry, shortest=rows * max(geometry.multiple))

    def arrange(self, call: TowerCall) -> Arranged:
        """Put the windows back on the map of the layer's stage."""
        place = re.search(r"layers\.(\d+)\.blocks\.\d+", call.path)
        if place is None:
            raise LayerSkipped("it lies outside the stages of the backbone")
        # The block clamps window and shift while it runs, so they are read after the call.
        block: Any = call.tower.get_submodule(call.path[: place.end()])
        height, width = call.patch_map(round_up=True)
        for _ in range(int(place[1])):
            height, width = (height + 1) // 2, (width + 1) // 2
        images, window, shift = call.pixels.shape[0], int(block.window_size), int(block.shift_size)
        attention = call.attention.apply(lambda tokens: unwindow(tokens, images, (height, width), window, shift))
        return Arranged(attention, TokenGrid(height, width), windowed=window < max(height, width))


@dataclasses.dataclass(frozen=True)
class SwinV2(VisionFamily):
    """As Swin, with cosine attention: the learned scale of each head goes into the query."""

    reads_any_size: bool = True

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Read what Swin reads."""
        return SWIN.geometry(tower)

    def arrange(self, call: TowerCall) -> Arranged:
        """Normalize the projections as the layer does inside, so that the record holds what the layer compares."""
        layer: Any = call.tower.get_submodule(call.path)
        scale = layer.logit_scale.detach().clamp(max=math.log(100.0)).exp()
        query, key = (normalize(tokens, dim=-1) for tokens in (call.attention.query, call.attention.key))
        return SWIN.arrange(
            dataclasses.replace(call, attention=AttentionCall(query * scale, key, call.attention.value, 1.0))
        )


SWIN = Swin(("swin", "donut-swin", "maskformer-swin"), example="microsoft/swin-tiny-patch4-window7-224")
SWIN_V2 = SwinV2(("swinv2",), example="microsoft/swinv2-tiny-patch4-window8-256")
