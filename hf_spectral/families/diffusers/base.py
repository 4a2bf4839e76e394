"""What the code around a denoiser asks its family: the defaults suit a transformer on square patches of latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hf_spectral.families.attention_call import LayerSkipped


@dataclasses.dataclass(frozen=True)
class Condition:
    """Embeddings of one prompt; all None for a denoiser that reads no text.

    Args:
        states: `(1, tokens, channels)`.
        mask: `(1, tokens)`, False where a token is padding.
        pooled: `(1, channels)`.
    """

    states: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Noised:
    """What a denoiser is shown of some pictures at one timestep, in its own precision.

    Args:
        latents: `(pictures, channels, height, width)`, noise added.
        timestep: `(pictures,)`, the timestep of the schedule.
        share: `(pictures,)`, the timestep as a share of the schedule, from 0 (data) to 1 (noise).
        condition: Embeddings of the prompt, repeated for every picture.
        size: Height and width of the pictures in pixels, as they were read.
    """

    latents: Tensor
    timestep: Tensor
    share: Tensor
    condition: Condition
    size: tuple[int, int]

    def for_each(self, values: list[float]) -> Tensor:
        """Return the same numbers for every picture.

        Args:
            values: Numbers that hold for one picture.

        Returns:
            `(pictures, numbers)`, with the device and the precision of the latents.
        """
        return self.latents.new_tensor([values]).expand(len(self.latents), -1)


class DenoiserFamily:
    """A class of denoisers. A family overrides what is special; subclasses are final.

    Attributes:
        class_name: Name of the diffusers class.
        example: A published checkpoint, for the table of backbones.
        tested_on: What the tests run it with, for the same table.
        is_flow: True if the denoiser was trained by flow matching, on straight lines from noise to data.
        text: Where text tokens stand in the layers that see them, relative to the image; None if no layer sees text.
        text_only: Start of the paths of layers that see text alone.
        rotates: True if layers rotate queries and keys after their projection.
        where_refused: Why the layers cannot serve the `where` pathway, or None if they can.
        is_square: True if the denoiser reads squares only.
        default_side: Longer side in latents, where the configuration has no `sample_size`.
        max_prompt_tokens: Longest prompt, as the last tokenizer counts.
    """

    class_name: ClassVar[str]
    example: ClassVar[str] = ""
    tested_on: ClassVar[str] = "random weights"
    is_flow: ClassVar[bool] = False
    text: Literal["first", "last"] | None = None
    text_only: ClassVar[str | None] = None
    rotates: ClassVar[bool] = False
    where_refused: ClassVar[str | None] = None
    is_square: ClassVar[bool] = False
    default_side: ClassVar[int] = 64
    max_prompt_tokens: ClassVar[int] = 77

    def refusal(self, config: Any) -> str | None:
        """Return why a configuration asks for conditions that are not known, or None.

        Args:
            config: Of the denoiser.
        """
        return None

    # The size of what it reads

    def latent_multiple(self, config: Any) -> int:
        """Return what the sides of the latents have to be multiples of."""
        return int(config.patch_size)

    def latent_channels(self, config: Any) -> int:
        """Return the channels of the latents."""
        return int(config.in_channels)

    def max_latents(self, config: Any) -> int | None:
        """Return the longest side in latents that the denoiser has positions for; None if there is no bound."""
        return int(config.pos_embed_max_size * config.patch_size) if config.get("pos_embed_max_size") else None

    # What it is told

    def prompt_host(self, denoiser: Any) -> tuple[str | None, dict[str, Any]]:
        """Return the name of the diffusers pipeline that encodes prompts, and arguments that it is built with.

        Args:
            denoiser: The denoiser.

        Returns:
            None as the name if the denoiser reads no prompt.
        """
        return None, {}

    def num_text_encoders(self, denoiser: Any) -> int:
        """Return how many pairs of text encoder and tokenizer read a prompt."""
        return 1

    def encode(self, host: Any, prompt: str, device: torch.device) -> Condition:
        """Encode a prompt with the host pipeline.

        Args:
            host: The pipeline that `prompt_host` names.
            prompt: The prompt.
            device: Where to encode it.

        Returns:
            Its embeddings.
        """
        raise NotImplementedError

    def empty_prompt(self, config: Any) -> tuple[int, int, int | None]:
        """Return tokens, channels and pooled channels of the zeros that stand in for an empty prompt."""
        raise NotImplementedError

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Return the arguments of the denoiser's forward.

        Args:
            denoiser: The denoiser.
            noised: What it is shown.

        Returns:
            Arguments by name.
        """
        return {
            "hidden_states": noised.latents,
            "timestep": noised.timestep,
            "encoder_hidden_states": noised.condition.states,
        }

    # Where the image tokens stand

    def sees_text(self, path: str, module: Any) -> bool:
        """Tell whether a layer attends to text and image tokens alike.

        Args:
            path: Name of the attention module in the denoiser.
            module: The attention module.

        Returns:
            True if it does.
        """
        return self.text is not None

    def token_map(self, denoiser: Any, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Return rows and columns of the image tokens, from the arguments of the denoiser's forward.

        Args:
            denoiser: The denoiser.
            inputs: Arguments of its forward, by name.

        Returns:
            Rows and columns.

        Raises:
            LayerSkipped: If they hold something else than one batch of maps.
        """
        latents = inputs.get("hidden_states")
        if not isinstance(latents, Tensor) or latents.ndim != 4:
            raise LayerSkipped("the input is not a batch of maps (images, channels, height, width)")
        patch = denoiser.config.patch_size
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def rotation_module(self, denoiser: Any) -> Any:
        """Return the submodule that computes the rotations of the image's positions in a forward pass, or None."""
        return None

    def image_rotation(self, denoiser: Any, inputs: Mapping[str, Any], output: Any) -> Tensor | None:
        """Return the rotations of the image's positions, to compare with those that a layer applies.

        Args:
            denoiser: The denoiser.
            inputs: Arguments of its forward, by name.
            output: What `rotation_module` gave; None before it has run.

        Returns:
            `(tokens, channels)`, or None if the family has none.
        """
        return None
