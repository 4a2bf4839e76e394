"""The vision tower of Gemma 4: patches of a picture's own grid, each with its column and row, then padding."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from hf_spectral.families.sizes import InputGeometry
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily, normalized, same_shapes
from hf_spectral.grid import TokenGrid

# Pooled tokens along a side of a picture, where the user asks for no resolution: 280 of them are the host's default.
_POOLED = 16


@dataclasses.dataclass(frozen=True)
class Gemma4Vision(VisionFamily):
    """Patches as rows of pixels, and where each lies."""

    reads_any_size: bool = True
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_position_ids")

    def stated_sizes(self, config: Any) -> tuple[Any, Any]:
        """Take whole pooled tokens."""
        side = config.patch_size * config.pooling_kernel_size
        return side, _POOLED * side

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Read sides up to that for which there are positions."""
        config: Any = tower.config
        longest = config.position_embedding_size * config.patch_size
        return dataclasses.replace(super().geometry(tower), longest=longest)

    def to_inputs(self, tower: nn.Module, processor: Any, image: Image.Image, size: tuple[int, int]) -> Any:
        """Cut the picture, of numbers from 0 to 1: the model itself centers them."""
        config: Any = tower.config
        side = config.patch_size
        pixels = normalized(image, size, Image.Resampling.BICUBIC, (0.0,), (1.0,))
        rows, columns = size[0] // side, size[1] // side
        patches = pixels.reshape(1, 3, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)
        return {"pixel_values": patches.reshape(1, rows * columns, -1), "pixel_position_ids": places[None]}

    def arrange(self, call: TowerCall) -> Arranged:
        """Order the patches by row and column, and leave the padding out."""
        places = call.inputs["pixel_position_ids"]
        same_shapes("pixel_position_ids", places.flatten(1))
        columns, rows = (int(length) + 1 for length in places[0].amax(dim=0))
        column, row = places[0].unbind(dim=1)
        raster = torch.where(column < 0, rows * columns, row * columns + column).argsort(stable=True)
        raster = raster[: rows * columns].to(call.attention.query.device)
        return Arranged(call.attention.apply(lambda tokens: tokens[..., raster, :]), TokenGrid(rows, columns))


GEMMA4 = Gemma4Vision(("gemma4_vision",), example="google/gemma-4-E2B-it")
