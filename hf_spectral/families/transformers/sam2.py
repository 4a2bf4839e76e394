"""The Hiera of SAM 2: padded windows of each stage, and global layers; a stage begins by pooling queries."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.families.transformers.windows import from_windows
from hf_spectral.grid import as_pair


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
        height, width = call.patch_map()
        for block in tower.blocks[:index]:
            if block.query_stride:
                (down, across) = as_pair(block.query_stride)
                height, width = height // down, width // across
        return from_windows(call, (height, width), tower.blocks[index].window_size)


SAM2 = Sam2Hiera(
    ("sam2_hiera_det_model",),
    reads_any_size=True,
    example="facebook/sam2.1-hiera-tiny",
    pathways="where from the global layers, what from all",
)
