"""Swin, Donut-Swin, MaskFormer's Swin and Swin V2: windows, shifted in every other block; each stage halves the map."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_spectral.families.attention_call import AttentionCall, LayerSkipped
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.families.transformers.windows import from_windows


@dataclasses.dataclass(frozen=True)
class Swin(VisionFamily):
    """Windows of one stage.

    Args:
        is_cosine: True if layers compare tokens by their cosine; the learned scale of each head goes into the query.
    """

    reads_any_size: bool = True
    is_cosine: bool = False

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Keep the smallest map as large as a window: the host's tables of biases fit no smaller one."""
        config: Any = tower.config
        rows = (config.window_size - 1) * 2 ** (len(config.depths) - 1) + 1
        geometry = super().geometry(tower)
        return dataclasses.replace(geometry, shortest=rows * max(geometry.multiple))

    def arrange(self, call: TowerCall) -> Arranged:
        """Put the windows back on the map of the layer's stage."""
        block, stage = block_of(call)
        height, width = call.patch_map(round_up=True)
        for _ in range(stage):
            height, width = (height + 1) // 2, (width + 1) // 2
        if self.is_cosine:
            # Normalized as the layer does inside, so that the record holds what the layer compares.
            query, key = (normalize(tokens, dim=-1) for tokens in (call.attention.query, call.attention.key))
            query = query * logit_scale(call)
            call = dataclasses.replace(call, attention=AttentionCall(query, key, call.attention.value, 1.0))
        return from_windows(call, (height, width), int(block.window_size), int(block.shift_size))


def block_of(call: TowerCall) -> tuple[Any, int]:
    """Return the block of a layer, and the index of its stage.

    Args:
        call: The call. The block clamps window and shift while it runs, so they are read after it.

    Returns:
        Both.

    Raises:
        LayerSkipped: If the layer lies outside the stages.
    """
    place = re.search(r"layers\.(\d+)\.blocks\.\d+", call.path)
    if place is None:
        raise LayerSkipped("it lies outside the stages of the backbone")
    return call.tower.get_submodule(call.path[: place.end()]), int(place[1])


def logit_scale(call: TowerCall) -> Tensor:
    """Return the learned factor of each head of a layer with cosine attention.

    Args:
        call: The call.

    Returns:
        `(heads, 1, 1)`.
    """
    layer: Any = call.tower.get_submodule(call.path)
    return layer.logit_scale.detach().clamp(max=math.log(100.0)).exp()


SWIN = Swin(("swin", "donut-swin", "maskformer-swin"), example="microsoft/swin-tiny-patch4-window7-224")
SWIN_V2 = Swin(("swinv2",), is_cosine=True, example="microsoft/swinv2-tiny-patch4-window8-256")
