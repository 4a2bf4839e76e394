"""Lumina 2: refiners of the image and of the caption, then joint layers with the caption first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_spectral.families.diffusers.base import DenoiserFamily, Noised


class Lumina2(DenoiserFamily):
    """`Lumina2Transformer2DModel`; it counts time from noise to data."""

    class_name = "Lumina2Transformer2DModel"
    example = "Alpha-VLLM/Lumina-Image-2.0"
    prompt_pipeline = "Lumina2Pipeline"
    encoded = ("states", "mask")
    text_width = "cap_feat_dim"
    is_flow = True
    text = "first"
    text_only = "context_refiner."
    rotates = True
    max_prompt_tokens = 256

    def max_latents(self, config: Any) -> int | None:
        """Return the bound of the rotary positions: of captions, rows and columns."""
        return int(min(config.axes_lens[1:]) * config.patch_size)

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Count the time from noise to data."""
        return super().arguments(denoiser, noised) | {"timestep": 1 - noised.share}

    def sees_text(self, path: str, module: Any) -> bool:
        """Tell the joint layers from the refiners."""
        return path.startswith("layers.")

    def rotation_module(self, denoiser: Any) -> torch.nn.Module:
        """Return the embedder of positions."""
        return denoiser.rope_embedder

    def image_rotation(self, denoiser: Any, inputs: Mapping[str, Any], output: Any) -> Tensor | None:
        """Return what the embedder gives after the hidden states and the rotations of the captions."""
        return None if output is None else output[2]
