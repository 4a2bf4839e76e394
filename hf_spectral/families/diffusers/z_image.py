"""Z-Image: refiners of the image and of the caption, then joint layers with the image first; both are padded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_spectral.families.attention_call import LayerSkipped
from hf_spectral.families.diffusers.base import Condition, DenoiserFamily, Noised

_PADDED_TO = 32  # Image and caption are each padded to a multiple of so many tokens.


class ZImage(DenoiserFamily):
    """`ZImageTransformer2DModel`; it counts time from noise to data."""

    class_name = "ZImageTransformer2DModel"
    example = "Tongyi-MAI/Z-Image-Turbo"
    prompt_pipeline = "ZImagePipeline"
    text_width = "cap_feat_dim"
    is_flow = True
    text = "last"
    text_only = "context_refiner."
    rotates = True
    default_side = 128
    max_prompt_tokens = 512
    prompt_comes_first = True
    time_argument = "t"

    def latent_multiple(self, config: Any) -> int:
        """Return the side of a patch."""
        return 2

    def max_latents(self, config: Any) -> int | None:
        """Return the bound of the rotary positions: of captions, rows and columns."""
        return 2 * int(min(config.axes_lens[1:]))

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode the prompt without padding."""
        return Condition(
            host.encode_prompt(prompt, device=device, do_classifier_free_guidance=False, **given)[0][0][None]
        )

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Give a list of videos of one frame and a list of prompts, and count the time from noise to data."""
        assert noised.condition.states is not None  # Encoded, or zeros.
        images, captions = noised.latents[:, :, None].unbind(), noised.condition.states.unbind()
        return {"x": list(images), "t": 1 - noised.share, "cap_feats": list(captions)}

    def num_text_tokens(self, denoiser: Any, inputs: Mapping[str, Any], path: str) -> int:
        """Count the padding of the image too, which follows it, and in the joint layers the padded caption."""
        height, width = self.token_map(denoiser, inputs)
        caption = max(map(_padded, map(len, inputs["cap_feats"]))) if path.startswith("layers.") else 0
        return _padded(height * width) - height * width + caption

    def token_map(self, denoiser: Any, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Read rows and columns from the latents of the first image."""
        images = inputs["x"]
        if isinstance(images[0], list) or len({one.shape for one in images}) > 1:
            raise LayerSkipped("its input is not one image for each prompt, all of one size")
        return images[0].shape[-2] // 2, images[0].shape[-1] // 2

    def rotation(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Return the complex numbers that turn queries and keys."""
        return arguments.get("freqs_cis")

    def image_rotation(self, denoiser: Any, inputs: Mapping[str, Any], output: Any) -> Tensor | None:
        """Number the positions after those of the caption, and embed them as the denoiser does."""
        size, device = (1, *self.token_map(denoiser, inputs)), inputs["x"][0].device
        starts = [(_padded(len(caption)) + 1, 0, 0) for caption in inputs["cap_feats"]]
        places = (denoiser.create_coordinate_grid(size, start, device).flatten(0, 2) for start in starts)
        return torch.stack([denoiser.rope_embedder(one) for one in places])


def _padded(tokens: int) -> int:
    return tokens + -tokens % _PADDED_TO
