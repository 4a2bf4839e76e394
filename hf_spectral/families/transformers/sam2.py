"""The Hiera of SAM 2: padded windows of each stage, and global layers; a stage begins by pooling queries."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.families.transformers.windows import unwindow
from hf_spectral.grid import TokenGrid, as_pair


@dataclasses.dataclass(frozen=True)
class Sam2Hiera(VisionFamily):
    """Windows on the map of a block's stage."""

    def stated_sizes(self, config: Any) -> tuple[Any, Any]:
        """Take whole windows of the first stage: positions are one window, repeated."""
        window = config.window_size_per_stage[0]
        return [side * window for side in as_pair(config.patch_stride)], config.image_size

    def arrange(self, call: TowerCall) -> Arranged:
        """Count the poolings before the block, and put its windows back on the map."""
        tower: Any = call.tower
        index = int(call.path.split(".")[1])
        height, width = (
            pixels // stride
            for pixels, stride in zip(call.pixels.shape[-2:], as_pair(call.config.patch_stride), strict=True)
        )
        for block in tower.blocks[:index]:
            if block.query_stride:
                (down, across) = as_pair(block.query_stride)
                height, width = height // down, width // across
        grid, window, images = TokenGrid(height, width), tower.blocks[index].window_size, call.pixels.shape[0]
        if not window:
            return Arranged(call.attention.on_grid(grid), grid)
        attention = call.attention.apply(lambda tokens: unwindow(tokens, images, (height, width), window))
        return Arranged(attention, grid, windowed=window < max(height, width))


SAM2 = Sam2Hiera(
    ("sam2_hiera_det_model",),
    reads_any_size=True,
    example="facebook/sam2.1-hiera-tiny",
    pathways="where from the global layers, what from all",
)
