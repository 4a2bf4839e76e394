"""EoMT: class token, registers, patches; the last blocks read queries for segments before all of them."""

from __future__ import annotations

import dataclasses

from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.grid import TokenGrid


@dataclasses.dataclass(frozen=True)
class Eomt(VisionFamily):
    """Blocks with and without queries."""

    def arrange(self, call: TowerCall) -> Arranged:
        """Count queries, where a block has them, among the prefix tokens."""
        height, width = call.patch_map()
        num_prefix = 1 + call.config.num_register_tokens
        if call.num_tokens > num_prefix + height * width:
            num_prefix += call.config.num_queries
        grid = TokenGrid(height, width, num_prefix)
        return Arranged(call.attention.on_grid(grid), grid)


EOMT = Eomt(
    ("eomt", "eomt_dinov3"),
    num_prefix=lambda config: 1 + config.num_register_tokens,
    example="tue-mps/coco_panoptic_eomt_large_640",
)
