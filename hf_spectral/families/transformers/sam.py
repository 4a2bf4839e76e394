"""The vision towers of SAM and SAM-HQ: padded windows without shift, and global layers between them."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.families.transformers.windows import unwindow
from hf_spectral.grid import TokenGrid


@dataclasses.dataclass(frozen=True)
class Sam(VisionFamily):
    """Windowed and global layers."""

    has_fused_projection: bool = True
    pathways: str = "where from the global layers, what from all"

    def arrange(self, call: TowerCall) -> Arranged:
        """Put the windows of a windowed layer back on the map."""
        height, width = call.patch_map()
        grid = TokenGrid(height, width)
        block: Any = call.tower.get_submodule(call.path.rpartition(".")[0])
        window = block.window_size
        if not window:
            return Arranged(call.attention.on_grid(grid), grid)
        images = call.pixels.shape[0]
        attention = call.attention.apply(lambda tokens: unwindow(tokens, images, (height, width), window))
        return Arranged(attention, grid, windowed=window < max(height, width))


SAM = Sam(("sam_vision_model", "sam_hq_vision_model"), example="facebook/sam-vit-base")
