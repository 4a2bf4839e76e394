"""timm's ViT, DeiT, SigLIP, DINOv2 and DINOv3, EVA-02, Perception Encoder and BEiT, as they are or in transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import nn

from hf_spectral.families.sizes import InputGeometry
from hf_spectral.families.transformers.base import Arranged, TowerCall, VisionFamily, normalized
from hf_spectral.grid import TokenGrid, as_pair


def prefix_and_patches(call: TowerCall, module: Any, grid: tuple[int, int]) -> Arranged:
    """Lay out class token and registers, then patches.

    Args:
        call: The call.
        module: The timm model.
        grid: Rows and columns of the patches.

    Returns:
        The arranged call.
    """
    layout = TokenGrid(*grid, _num_prefix(module))
    return Arranged(call.attention.on_grid(layout), layout)


@dataclasses.dataclass(frozen=True)
class Timm(VisionFamily):
    """Models of timm: module and `pretrained_cfg` say what a configuration says elsewhere.

    Args:
        lay_out: Brings a call into the form of a record, given the timm model and rows and columns of the patches.
    """

    has_fused_projection: bool = True
    scales_query: bool = True
    lay_out: Callable[[TowerCall, Any, tuple[int, int]], Arranged] = prefix_and_patches

    def arrange(self, call: TowerCall) -> Arranged:
        """Lay the tokens out as the timm model does."""
        module: Any = getattr(call.tower, "timm_model", call.tower)
        call = dataclasses.replace(call, inputs={"pixel_values": call.inputs.get("x"), **call.inputs})
        height, width = call.pixels.shape[-2:]
        rows, columns = self.geometry(call.tower).multiple
        return self.lay_out(call, module, (height // rows, width // columns))

    def input_refusal(self, tower: nn.Module) -> str | None:
        """Refuse models that are cut into patches by anything but one embedding."""
        module: Any = getattr(tower, "timm_model", tower)
        embed = getattr(module, "patch_embed", None)
        if hasattr(embed, "patch_size") or hasattr(module, "patch_stride"):
            return None
        return f"its timm {type(module).__name__} does not cut a picture into patches by one `patch_embed`"

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Read patch and picture from the module; any size if it was built with `dynamic_img_size`."""
        module: Any = getattr(tower, "timm_model", tower)
        embed = module.patch_embed
        patch = getattr(module, "patch_stride", None) or embed.patch_size
        tokens = getattr(module, "tokens_spatial_shape", None) or getattr(embed, "grid_size", None) or (14, 14)
        image = [count * side for count, side in zip(tokens, as_pair(patch), strict=True)]
        is_dynamic = getattr(module, "dynamic_img_size", False)
        return InputGeometry(as_pair(patch), as_pair(image), is_fixed=not is_dynamic, forward_arguments={})

    def to_inputs(self, tower: nn.Module, processor: Any, image: Image.Image, size: tuple[int, int]) -> Any:
        """Resize and normalize as `pretrained_cfg` says; timm's own transforms crop."""
        stated = getattr(getattr(tower, "timm_model", tower), "pretrained_cfg", None) or {}
        resample = Image.Resampling[stated.get("interpolation", "bicubic").upper()]
        mean, std = stated.get("mean", (0.5, 0.5, 0.5)), stated.get("std", (0.5, 0.5, 0.5))
        return {"pixel_values": normalized(image, size, resample, mean, std)}


def _num_prefix(module: Any) -> int:
    return getattr(module, "num_prefix_tokens", 1)


TIMM = Timm(
    ("timm.VisionTransformer", "timm.Eva", "timm.Beit"),
    num_prefix=_num_prefix,
    example="timm/vit_base_patch16_siglip_224.v2_webli",
)
UNKNOWN_TIMM = Timm(("timm.*", "timm_wrapper"), refusal="the order of tokens in this class of timm is not known")
