"""What Flux and its descendants share: latents packed two by two, numbered positions, text tokens first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_spectral.families.attention_call import LayerSkipped
from hf_spectral.families.diffusers.base import DenoiserFamily, Noised


class Packed(DenoiserFamily):
    """Denoisers of packed latents that are told the position of each token by `img_ids`.

    Attributes:
        guidance: What guidance-distilled models are run with by default; None if there are none.
    """

    is_flow = True
    text = "first"
    rotates = True
    default_side = 128
    max_prompt_tokens = 512
    guidance: ClassVar[float | None] = None

    def latent_multiple(self, config: Any) -> int:
        """Return the side of a pack."""
        return 2

    def latent_channels(self, config: Any) -> int:
        """Return the channels before packing."""
        return int(config.in_channels) // 4

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Pack the latents and number their positions; give the time as a share, and the strength of guidance."""
        from diffusers import FluxPipeline

        told, latents = super().arguments(denoiser, noised), noised.latents
        count, channels, height, width = latents.shape
        placed: dict[str, Any] = {"device": latents.device, "dtype": latents.dtype}
        told |= {
            "hidden_states": FluxPipeline._pack_latents(latents, count, channels, height, width),
            "timestep": noised.share,
            "img_ids": FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, **placed),
            "txt_ids": torch.zeros(told["encoder_hidden_states"].shape[1], 3, **placed),
        }
        if self.guidance is not None and denoiser.config.guidance_embeds:
            told["guidance"] = torch.full_like(noised.share, self.guidance)
        return told

    def token_map(self, denoiser: Any, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Read rows and columns from the positions: a frame, a row and a column each."""
        positions = _positions(inputs)
        rows, columns = (positions[:, axis].long() - positions[:, axis].long().min() for axis in (1, 2))
        height, width = int(rows.max()) + 1, int(columns.max()) + 1
        raster = torch.arange(height * width, device=rows.device)
        if not torch.equal(rows * width + columns, raster) or bool((positions[:, 0] != positions[0, 0]).any()):
            raise LayerSkipped("its image tokens are not one map in raster order: `img_ids` hold several images")
        return height, width

    def image_rotation(self, denoiser: Any, inputs: Mapping[str, Any], output: Any) -> Tensor | None:
        """Embed the positions as the denoiser does."""
        return denoiser.pos_embed(_positions(inputs))[0] if isinstance(inputs.get("img_ids"), Tensor) else None


def _positions(inputs: Mapping[str, Any]) -> Tensor:
    positions = inputs["img_ids"]
    return positions[0] if positions.ndim == 3 else positions
