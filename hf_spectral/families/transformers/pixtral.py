"""Pixtral: patches with rotary positions; all pictures of a batch stand in one sequence."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from hf_spectral.families.sizes import InputGeometry
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.grid import TokenGrid


@dataclasses.dataclass(frozen=True)
class Pixtral(VisionFamily):
    """A block of the sequence for each picture."""

    reads_any_size: bool = True

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Read sides up to that of the configuration, for which there are positions."""
        geometry = super().geometry(tower)
        return dataclasses.replace(geometry, longest=max(geometry.default))

    def arrange(self, call: TowerCall) -> Arranged:
        """Split the sequence into pictures."""
        grid, images = TokenGrid(*call.patch_map()), call.pixels.shape[0]

        def pictures(tokens: Tensor) -> Tensor:
            return tokens[0].unflatten(1, (images, grid.num_nodes)).transpose(0, 1)

        return Arranged(call.attention.apply(pictures), grid)


PIXTRAL = Pixtral(("pixtral",), example="mistral-community/pixtral-12b")
