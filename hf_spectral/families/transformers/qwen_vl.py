"""The vision towers of Qwen2-VL to Qwen3.5 and GLM-4V: patches that are merged later stand together."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from hf_spectral.families.attention_call import LayerSkipped
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily, same_shapes
from hf_spectral.grid import TokenGrid

# Merged patches along a side of a picture, where the user asks for no resolution; the host has no size of its own.
_MERGED = 24


@dataclasses.dataclass(frozen=True)
class QwenVision(VisionFamily):
    """All pictures of a batch in one sequence, in merge order; Qwen2.5 orders the merged patches by windows too."""

    attends_in_parts: bool = True
    processor_crops: bool = True
    reads_any_size: bool = True
    inputs: ClassVar[tuple[str, ...]] = ("hidden_states", "grid_thw")

    def stated_sizes(self, config: Any) -> tuple[Any, Any]:
        """Take whole merged patches."""
        side = config.patch_size * config.spatial_merge_size
        return side, _MERGED * side

    def to_inputs(self, tower: nn.Module, processor: Any, image: Image.Image, size: tuple[int, int]) -> Any:
        """Cut the patches in merge order, each repeated for as many frames as a token spans."""
        config: Any = tower.config
        side, merge = config.patch_size, config.spatial_merge_size
        height, width = size[0] // side, size[1] // side
        pixels = super().to_inputs(tower, processor, image, size)["hidden_states"]
        blocks = pixels.reshape(3, height // merge, merge, side, width // merge, merge, side)
        patches = blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(height * width, 3, 1, side, side)
        patches = patches.expand(-1, -1, config.temporal_patch_size, -1, -1).flatten(1)
        return {"hidden_states": patches, "grid_thw": torch.tensor([[1, height, width]])}

    def arrange(self, call: TowerCall) -> Arranged:
        """Split the sequence into pictures and bring their patches into raster order."""
        config, (frames, height, width) = call.config, same_shapes("grid_thw", call.inputs["grid_thw"])
        if frames != 1:
            raise LayerSkipped("it was shown videos, not pictures")
        grid, merge = TokenGrid(height, width), config.spatial_merge_size
        merged = torch.arange(height * width).reshape(height // merge, merge, width // merge, merge)
        merged = merged.transpose(1, 2).reshape(height // merge, width // merge, merge * merge)
        window, is_windowed = getattr(config, "window_size", 0) // config.patch_size // merge, False
        if window:
            merged = torch.cat([part.flatten(0, 1) for row in merged.split(window) for part in row.split(window, 1)])
            is_windowed = int(call.path.split(".")[1]) not in config.fullatt_block_indexes
        raster = merged.flatten().argsort().to(call.attention.query.device)

        def pictures(tokens: Tensor) -> Tensor:
            split = tokens[0].unflatten(1, (-1, grid.num_nodes)).transpose(0, 1)
            return split[:, :, raster]

        is_windowed = is_windowed and window * merge < max(height, width)
        return Arranged(call.attention.apply(pictures), grid, windowed=is_windowed)


QWEN_VL = QwenVision(
    ("qwen2_vl_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision", "qwen3_5_moe_vision"),
    example="Qwen/Qwen3-VL-2B-Instruct",
)
QWEN_2_5_VL = QwenVision(
    ("qwen2_5_vl_vision",),
    example="Qwen/Qwen2.5-VL-3B-Instruct",
    pathways="where from the global layers, what from all",
)
GLM_4V = QwenVision(("glm4v_vision", "glm4v_moe_vision"), example="zai-org/GLM-4.1V-9B-Thinking")
