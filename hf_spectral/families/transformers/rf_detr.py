"""The DINOv2 of RF-DETR: windows with a class token each, in one row for global layers; of square pictures only."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from hf_spectral.families.sizes import InputGeometry
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.families.transformers.windows import unwindow
from hf_spectral.grid import TokenGrid, as_pair


@dataclasses.dataclass(frozen=True)
class RfDetr(VisionFamily):
    """As many windows along each side as the configuration says."""

    reads_any_size: bool = True

    def stated_sizes(self, config: Any) -> tuple[Any, Any]:
        """Take whole windows."""
        return [side * config.num_windows for side in as_pair(config.patch_size)], config.image_size

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Read squares: the host exchanges rows and columns of windows."""
        return dataclasses.replace(super().geometry(tower), is_square=True)

    def arrange(self, call: TowerCall) -> Arranged:
        """Drop the class token of each window, and put the windows back on the map."""
        height, width = call.patch_map()
        count, images = call.config.num_windows, call.pixels.shape[0]
        block: Any = call.tower.get_submodule(call.path.rpartition(".")[0])

        def windows(tokens: Tensor) -> Tensor:
            if block.global_attention:
                tokens = tokens.unflatten(2, (count**2, -1)).transpose(1, 2).flatten(0, 1)
            return unwindow(tokens[:, :, 1:], images, (height, width), (height // count, width // count))

        is_windowed = count > 1 and not block.global_attention
        return Arranged(call.attention.apply(windows), TokenGrid(height, width), windowed=is_windowed)


RF_DETR = RfDetr(
    ("rf_detr_dinov2",),
    num_prefix=1,
    example="Roboflow/rf-detr-base",
    pathways="where from the global layers, what from all",
)
