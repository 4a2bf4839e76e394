"""SigLIP and SigLIP 2: patches only; NaFlex takes any grid of at most so many patches."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from PIL import Image
from torch import nn

from hf_spectral.families.attention_call import LayerSkipped
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily, same_shapes
from hf_spectral.grid import TokenGrid, as_pair


@dataclasses.dataclass(frozen=True)
class NaFlex(VisionFamily):
    """Patches of an image's own grid, then padding; the processor cuts them."""

    reads_any_size: bool = True
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

    def stated_sizes(self, config: Any) -> tuple[Any, Any]:
        """Take the square of as many patches as the configuration allows."""
        count = getattr(config, "num_patches", None)
        return config.patch_size, count and [round(count**0.5) * side for side in as_pair(config.patch_size)]

    def to_inputs(self, tower: nn.Module, processor: Any, image: Image.Image, size: tuple[int, int]) -> Any:
        """Let the processor cut patches, from a grid that fits their number."""
        patch_height, patch_width = self.geometry(tower).multiple
        count = (size[0] // patch_height) * (size[1] // patch_width)
        return processor(image, max_num_patches=count, return_tensors="pt")

    def arrange(self, call: TowerCall) -> Arranged:
        """Take the patches that `spatial_shapes` announces."""
        height, width = same_shapes("spatial_shapes", call.inputs["spatial_shapes"])
        grid = TokenGrid(height, width)
        if grid.num_nodes > call.num_tokens:
            raise LayerSkipped(f"it sees {call.num_tokens} tokens of {grid.num_nodes} that spatial_shapes announces")
        return Arranged(call.attention.apply(lambda tokens: tokens[..., : grid.num_nodes, :]), grid)


SIGLIP = VisionFamily(("siglip_vision_model",), example="google/siglip-base-patch16-224")
SIGLIP2 = NaFlex(("siglip2_vision_model",), example="google/siglip2-base-patch16-naflex")
