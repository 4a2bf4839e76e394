"""UNets of pixels (DDPM, consistency models): attention on maps at some levels, no text."""

from __future__ import annotations

from typing import Any

from hf_spectral.families.diffusers.base import DenoiserFamily, Noised


class PixelUNet(DenoiserFamily):
    """`UNet2DModel`, without a class."""

    class_name = "UNet2DModel"
    example = "google/ddpm-celebahq-256"

    def refusal(self, config: Any) -> str | None:
        """Refuse a class, and noise that grows without bound (NCSN++)."""
        if config.get("class_embed_type") or config.get("num_class_embeds"):
            return "it is told a class"
        fourier = config.get("time_embedding_type") == "fourier"
        return "it is told the size of the noise, in place of a timestep" if fourier else None

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Give picture and timestep."""
        return {"sample": noised.latents, "timestep": noised.timestep}
