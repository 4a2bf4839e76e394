"""DiT: squares of latents, told a class of ImageNet."""

from __future__ import annotations

from typing import Any

import torch

from hf_spectral.families.diffusers.base import DenoiserFamily, Noised


class DiT(DenoiserFamily):
    """`DiTTransformer2DModel`."""

    class_name = "DiTTransformer2DModel"
    example = "facebook/DiT-XL-2-256"
    is_square = True

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Give the class that stands for none, the one after the last."""
        latents = noised.latents
        labels = torch.full((len(latents),), denoiser.config.num_embeds_ada_norm, device=latents.device)
        return {"hidden_states": latents, "timestep": noised.timestep, "class_labels": labels}
