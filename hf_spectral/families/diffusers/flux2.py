"""Flux 2: double and single stream blocks, text tokens first, latents normalized in packs of two by two."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hf_spectral.families.diffusers.base import Condition, Noised
from hf_spectral.families.diffusers.packed import Packed


class Flux2(Packed):
    """`Flux2Transformer2DModel`; the small models (klein) read their prompt by Qwen 3."""

    class_name = "Flux2Transformer2DModel"
    example = "black-forest-labs/FLUX.2-dev"
    prompt_pipeline = "Flux2Pipeline"
    empty_tokens = 512
    guidance = 4.0

    def scale_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Normalize packs as the host does."""
        from diffusers import Flux2Pipeline

        encoder = SimpleNamespace(encode=lambda given: SimpleNamespace(latents=given), bn=vae.bn, config=vae.config)
        host: Any = SimpleNamespace(vae=encoder, _patchify_latents=Flux2Pipeline._patchify_latents)
        return Flux2Pipeline._unpatchify_latents(Flux2Pipeline._encode_vae_image(host, latents, None))

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt by the text encoder's kind."""
        from diffusers import Flux2KleinPipeline

        if not given and type(host.text_encoder).__name__.startswith("Qwen3"):
            by_qwen = Flux2KleinPipeline._get_qwen3_prompt_embeds
            return Condition(by_qwen(host.text_encoder, host.tokenizer, prompt, device=device))
        return super().encode(host, prompt, device, **given)

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Number the positions of image and prompt on four axes."""
        from diffusers import Flux2Pipeline

        told, latents = super().arguments(denoiser, noised), noised.latents
        image = Flux2Pipeline._prepare_latent_ids(Flux2Pipeline._patchify_latents(latents))
        prompt = Flux2Pipeline._prepare_text_ids(told["encoder_hidden_states"])
        return told | {"img_ids": image.to(latents.device), "txt_ids": prompt.to(latents.device)}
