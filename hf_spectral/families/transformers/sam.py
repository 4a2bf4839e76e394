"""The vision towers of SAM and SAM-HQ: padded windows without shift, and global layers between them."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.families.transformers.windows import from_windows


@dataclasses.dataclass(frozen=True)
class Sam(VisionFamily):
    """Windowed and global layers."""

    has_fused_projection: bool = True
    pathways: str = "where from the global layers, what from all"

    def arrange(self, call: TowerCall) -> Arranged:
        """Put the windows of a windowed layer back on the map."""
        block: Any = call.tower.get_submodule(call.path.rpartition(".")[0])
        return from_windows(call, call.patch_map(), block.window_size)


SAM = Sam(("sam_vision_model", "sam_hq_vision_model"), example="facebook/sam-vit-base")
