"""The backbones of RF-DETR and LW-DETR: windows, which stand one after the other in one row for global layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from hf_spectral.families.sizes import InputGeometry
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.families.transformers.windows import unwindow
from hf_spectral.grid import TokenGrid, as_pair


@dataclasses.dataclass(frozen=True)
class WindowMajor(VisionFamily):
    """As many windows along each side as the configuration says, in an order that global layers keep.

    Args:
        is_square: True if the host exchanges rows and columns of windows: it then reads squares only.
    """

    reads_any_size: bool = True
    pathways: str = "where from the global layers, what from all"
    is_square: bool = False

    def stated_sizes(self, config: Any) -> tuple[Any, Any]:
        """Take whole windows."""
        return [side * _windows_along(config) for side in as_pair(config.patch_size)], config.image_size

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Say whether it reads squares only."""
        return dataclasses.replace(super().geometry(tower), is_square=self.is_square)

    def arrange(self, call: TowerCall) -> Arranged:
        """Drop the class token of each window, if it has one, and put the windows back on the map."""
        height, width = call.patch_map()
        count, images = _windows_along(call.config), call.pixels.shape[0]
        window = height // count, width // count
        is_global = call.attention.query.shape[0] == images
        num_class_tokens: Any = self.num_prefix

        def windows(tokens: Tensor) -> Tensor:
            if is_global:
                tokens = tokens.unflatten(2, (count**2, -1)).transpose(1, 2).flatten(0, 1)
            return unwindow(tokens[:, :, num_class_tokens:], images, (height, width), window)

        return Arranged(call.attention.apply(windows), TokenGrid(height, width), windowed=not is_global)


def _windows_along(config: Any) -> int:
    return getattr(config, "num_windows_side", config.num_windows)


RF_DETR = WindowMajor(("rf_detr_dinov2",), num_prefix=1, is_square=True, example="Roboflow/rf-detr-base")
LW_DETR = WindowMajor(("lw_detr_vit",), example="AnnaZhang/lwdetr_small_60e_coco")
