"""UNets of Stable Diffusion 1, 2, XL and Kolors: attention on maps, text by cross-attention only."""

from __future__ import annotations

from typing import Any

from hf_spectral.families.diffusers.base import DenoiserFamily, Noised

# Images, a class, or further embeddings.
_FURTHER_CONDITIONS = [
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
]


class UNet(DenoiserFamily):
    """`UNet2DConditionModel`; XL and Kolors, told by their configuration, are also given a pooled prompt and sizes."""

    class_name = "UNet2DConditionModel"
    example = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    encoded = ("states", "", "pooled")

    def refusal(self, config: Any) -> str | None:
        """Refuse UNets with a class, an image or other embeddings beside the prompt."""
        asked = {name: config.get(name) for name in _FURTHER_CONDITIONS if config.get(name)}
        if _is_xl(config):
            del asked["addition_embed_type"]
        if _is_kolors(config):
            del asked["encoder_hid_dim"], asked["encoder_hid_dim_type"]
        told = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        return f"it is given more than a timestep and a prompt: {told}" if asked else None

    def prompt_host(self, config: Any) -> str | None:
        """Encode as Kolors, as XL or as Stable Diffusion does."""
        if _is_kolors(config):
            return "KolorsPipeline"
        return "StableDiffusionXLPipeline" if _is_xl(config) else "StableDiffusionPipeline"

    def empty_prompt(self, config: Any) -> tuple[int, int, int | None]:
        """Return the 77 tokens of CLIP, or the 256 of Kolors."""
        tokens = 256 if _is_kolors(config) else 77
        width = config.encoder_hid_dim if _is_kolors(config) else config.cross_attention_dim
        pooled = None
        if _is_xl(config):
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return tokens, int(width if isinstance(width, int) else width[0]), pooled

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Add the original size, the crop's corner and the target size for XL."""
        condition = noised.condition
        told: dict[str, Any] = {
            "sample": noised.latents,
            "timestep": noised.timestep,
            "encoder_hidden_states": condition.states,
        }
        if _is_xl(denoiser.config):
            sizes = noised.for_each([*noised.size, 0, 0, *noised.size])
            told["added_cond_kwargs"] = {"text_embeds": condition.pooled, "time_ids": sizes}
        return told


def _is_xl(config: Any) -> bool:
    return config.get("addition_embed_type") == "text_time"


def _is_kolors(config: Any) -> bool:
    return bool(_is_xl(config) and config.get("encoder_hid_dim_type") == "text_proj")
