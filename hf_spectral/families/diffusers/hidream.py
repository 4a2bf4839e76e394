"""HiDream: double and single stream blocks, image tokens first; a picture that is no square is padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised


class HiDream(DenoiserFamily):
    """`HiDreamImageTransformer2DModel`; each block is given T5, the last and its own layer of Llama."""

    class_name = "HiDreamImageTransformer2DModel"
    example = "HiDream-ai/HiDream-I1-Full"
    prompt_pipeline = "HiDreamImagePipeline"
    is_flow = True
    text = "last"
    rotates = True
    default_side = 128
    max_prompt_tokens = 128
    num_needed_encoders = 4
    time_argument = "timesteps"

    def max_latents(self, config: Any) -> int | None:
        """Return the side of the largest square."""
        return int(min(config.max_resolution))

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt once for all text encoders."""
        guided = {"do_classifier_free_guidance": False}
        states, _, layers, _, pooled, _ = host.encode_prompt(prompt, None, None, None, device=device, **guided, **given)
        return Condition(states, pooled=pooled, others={"layers": layers.transpose(0, 1)})

    def zeros(self, config: Any) -> Condition:
        """Return the 128 tokens of T5 and of each layer of Llama."""
        wide, layered = config.caption_channels
        layers = torch.zeros(1, max(config.llama_layers) + 1, 128, layered)
        return Condition(torch.zeros(1, 128, wide), None, torch.zeros(1, config.text_emb_dim), {"layers": layers})

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Give the prompt in three parts."""
        return {
            "hidden_states": noised.latents,
            "timesteps": noised.timestep,
            "encoder_hidden_states_t5": noised.condition.states,
            "encoder_hidden_states_llama3": noised.condition.others["layers"].transpose(0, 1),
            "pooled_embeds": noised.condition.pooled,
        }

    def num_text_tokens(self, denoiser: Any, inputs: Mapping[str, Any], path: str) -> int:
        """Count T5, two layers of Llama, and the padding of the image, which follows it."""
        height, width = self.token_map(denoiser, inputs)
        padding = 0 if height == width else denoiser.max_seq - height * width
        llama = inputs["encoder_hidden_states_llama3"].shape[2]
        return padding + inputs["encoder_hidden_states_t5"].shape[1] + 2 * llama

    def rotation(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Return the entries of the rotations."""
        rotation = arguments.get("image_rotary_emb")
        return None if rotation is None else rotation.flatten(2)

    def image_rotation(self, denoiser: Any, inputs: Mapping[str, Any], output: Any) -> Tensor | None:
        """Number the positions and embed them as the denoiser does."""
        if not isinstance(inputs.get("hidden_states"), Tensor) or inputs["hidden_states"].ndim != 4:
            return None
        height, width = self.token_map(denoiser, inputs)
        places = denoiser.patchify(inputs["hidden_states"])[3][:, : height * width]
        return denoiser.pe_embedder(places).flatten(2)
