"""VideoMAE and V-JEPA 2: a picture is shown as a still clip, and the tokens of its frames are averaged."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from PIL import Image
from torch import nn

from hf_spectral.families.attention_call import LayerSkipped
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily
from hf_spectral.grid import TokenGrid, as_pair


@dataclasses.dataclass(frozen=True)
class VideoMae(VisionFamily):
    """Patches of one frame after those of another."""

    processor_crops: bool = True
    interpolates: bool = False

    def stated_sizes(self, config: Any) -> tuple[Any, Any]:
        """Read the side of a frame from whichever name the configuration has for it."""
        return config.patch_size, getattr(config, "crop_size", None) or config.image_size

    def input_refusal(self, tower: nn.Module) -> str | None:
        """Accept every tower: its configuration states all that is needed."""
        return None

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Say that a clip is made of the picture."""
        note = (
            f"The backbone reads clips: the picture was shown as a still clip of {_frames(tower)} frames, and the "
            "tokens of its frames were averaged."
        )
        return dataclasses.replace(super().geometry(tower), note=note)

    def to_inputs(self, tower: nn.Module, processor: Any, image: Image.Image, size: tuple[int, int]) -> Any:
        """Repeat the picture."""
        made = super().to_inputs(tower, processor, image, size)
        return {name: pixels[:, None].expand(-1, _frames(tower), -1, -1, -1) for name, pixels in made.items()}

    def arrange(self, call: TowerCall) -> Arranged:
        """Average over the frames."""
        clip = call.inputs[self.inputs[0]]
        sides = as_pair(call.config.patch_size)
        grid = TokenGrid(*(length // side for length, side in zip(clip.shape[-2:], sides, strict=True)))
        if call.num_tokens % grid.num_nodes:
            raise LayerSkipped(f"{call.num_tokens} tokens are no frames of {grid.height} x {grid.width} patches")
        attention = call.attention.apply(lambda tokens: tokens.unflatten(2, (-1, grid.num_nodes)).mean(dim=2))
        return Arranged(attention, grid)


@dataclasses.dataclass(frozen=True)
class VJepa2(VideoMae):
    """The encoder; its predictor is not run."""

    part: str = "encoder."
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos",)

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Leave the predictor out."""
        return dataclasses.replace(super().geometry(tower), forward_arguments={"skip_predictor": True})


def _frames(tower: Any) -> int:
    """Return the number of frames that the positions are made for; if they fit any, the frames of one token."""
    return getattr(tower.config, "num_frames", None) or tower.config.tubelet_size


VIDEO_MAE = VideoMae(("videomae",), example="MCG-NJU/videomae-base")
V_JEPA2 = VJepa2(("vjepa2",), example="facebook/vjepa2-vitl-fpc64-256")
