"""Flux: double and single stream blocks, text tokens first, rotary positions, latents packed two by two."""

from __future__ import annotations

from hf_spectral.families.diffusers.packed import Packed


class Flux(Packed):
    """`FluxTransformer2DModel`."""

    class_name = "FluxTransformer2DModel"
    example = "black-forest-labs/FLUX.1-dev"
    prompt_pipeline = "FluxPipeline"
    encoded = ("states", "pooled")
    empty_tokens = 512
    guidance = 3.5
