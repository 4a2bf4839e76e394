"""Base of the families of denoisers: a transformer on square patches of latents, unless a family overrides it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.families.attention_call import LayerSkipped


@dataclasses.dataclass(frozen=True)
class Condition:
    """Embeddings of one prompt; all None for a denoiser that reads no text.

    Args:
        states: `(1, tokens, channels)`.
        mask: `(1, tokens)`, False where a token is padding.
        pooled: `(1, channels)`.
        others: Further embeddings by name, `(1, ...)` each.
    """

    states: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    others: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def apply(self, transform: Callable[[Tensor], Tensor]) -> Condition:
        """Return the embeddings, each transformed.

        Args:
            transform: Takes and returns one tensor.

        Returns:
            A new condition, None where this one is None.
        """
        parts = (None if part is None else transform(part) for part in (self.states, self.mask, self.pooled))
        states, mask, pooled = parts
        return Condition(states, mask, pooled, {name: transform(one) for name, one in self.others.items()})


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
        """Repeat numbers for every picture.

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
        is_flow: True if the denoiser was trained by flow matching, on straight lines from noise to data.
        text: Where text tokens stand in the layers that see them, relative to the image; None if no layer sees text.
        text_only: Start of the paths of layers that see text alone.
        rotates: True if layers rotate queries and keys after their projection.
        other_pipelines: Pattern in the names of host pipelines whose denoisers, of this class and configured alike, are
            always shown further pictures; None if there are none.
        where_refused: Why the layers cannot serve the `where` pathway, or None if they can.
        is_square: True if the denoiser reads squares only.
        default_side: Longer side in latents, where the configuration has no `sample_size`.
        prompt_pipeline: Name of the diffusers pipeline that encodes its prompts; None if it reads none.
        encoded: What `encode_prompt` of that pipeline returns, in order: parts of a `Condition`; "" for one not read.
        empty_tokens: Tokens of the zeros that stand in for an empty prompt.
        text_width: Where the configuration has the channels of the prompt.
        max_prompt_tokens: Longest prompt, as the last tokenizer counts.
        num_needed_encoders: Text encoders that have to be loaded for a prompt, at most.
        prompt_comes_first: True if the host puts the prompt before the empty one where guidance runs both at once.
        time_argument: Name of the timestep among the arguments of the forward.
    """

    class_name: ClassVar[str]
    example: ClassVar[str] = ""
    is_flow: ClassVar[bool] = False
    text: Literal["first", "last"] | None = None
    text_only: ClassVar[str | None] = None
    rotates: ClassVar[bool] = False
    other_pipelines: ClassVar[str | None] = None
    where_refused: ClassVar[str | None] = None
    is_square: ClassVar[bool] = False
    default_side: ClassVar[int] = 64
    prompt_pipeline: ClassVar[str | None] = None
    encoded: ClassVar[tuple[str, ...]] = ("states",)
    empty_tokens: ClassVar[int] = 1
    text_width: ClassVar[str] = "joint_attention_dim"
    max_prompt_tokens: ClassVar[int] = 77
    num_needed_encoders: ClassVar[int] = 2
    prompt_comes_first: ClassVar[bool] = False
    time_argument: ClassVar[str] = "timestep"

    def refusal(self, config: Any) -> str | None:
        """Return why a configuration asks for conditions that are not known, or None.

        Args:
            config: Of the denoiser.
        """
        return None

    # The size of what it reads

    def latent_multiple(self, config: Any) -> int:
        """Return the number that divides the sides of the latents: the patch, or the factor by which a UNet shrinks."""
        return int(config.get("patch_size") or 2 ** (len(config.block_out_channels) - 1))

    def latent_channels(self, config: Any) -> int:
        """Return the channels of the latents."""
        return int(config.in_channels)

    def max_latents(self, config: Any) -> int | None:
        """Return the longest side in latents that the denoiser has positions for; None if there is no bound."""
        return int(config.pos_embed_max_size * config.patch_size) if config.get("pos_embed_max_size") else None

    def scale_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents as the denoiser reads them.

        Args:
            vae: The autoencoder.
            latents: What its encoder gave, `(pictures, channels, height, width)`.

        Returns:
            Latents of the same shape.
        """
        config = vae.config
        factor = config.get("scaling_factor") or 1.0
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, deviation = (
                torch.tensor(config[name], dtype=latents.dtype, device=latents.device).view(1, -1, 1, 1)
                for name in ("latents_mean", "latents_std")
            )
            return (latents - mean) * factor / deviation
        return (latents - (config.get("shift_factor") or 0.0)) * factor

    # What it is told

    def prompt_host(self, config: Any) -> str | None:
        """Return the name of the diffusers pipeline that encodes prompts; None if the denoiser reads none."""
        return self.prompt_pipeline

    def encode(self, host: Any, prompt: str | None, device: torch.device, **given: Any) -> Condition:
        """Encode a prompt with the host pipeline.

        Args:
            host: The pipeline that `prompt_host` names.
            prompt: The prompt; None with embeddings.
            device: Where to encode it.
            **given: Embeddings under the names that the host has for them.

        Returns:
            Its embeddings.
        """
        taken = inspect.signature(host.encode_prompt).parameters
        told: dict[str, Any] = {name: None for name, one in taken.items() if one.default is one.empty}
        fixed = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        told |= {name: one for name, one in fixed.items() if name in taken}
        found = dict(zip(self.encoded, host.encode_prompt(**{**told, "prompt": prompt, **given}), strict=False))
        mask = found.get("mask")
        return Condition(found["states"], None if mask is None else mask.bool(), found.get("pooled"))

    def empty_prompt(self, config: Any) -> tuple[int, int, int | None]:
        """Return tokens, channels and pooled channels of the zeros that stand in for an empty prompt."""
        return self.empty_tokens, config[self.text_width], config.get("pooled_projection_dim")

    def zeros(self, config: Any) -> Condition:
        """Return the zeros that stand in for an empty prompt.

        Args:
            config: Of the denoiser.

        Returns:
            Embeddings that are all zero, with a mask that leaves out none.
        """
        tokens, width, pooled = self.empty_prompt(config)
        mask = torch.ones(1, tokens, dtype=torch.bool)
        return Condition(torch.zeros(1, tokens, width), mask, None if pooled is None else torch.zeros(1, pooled))

    def arguments(self, denoiser: Any, noised: Noised) -> dict[str, Any]:
        """Return the arguments of the denoiser's forward.

        Args:
            denoiser: The denoiser.
            noised: What it is shown.

        Returns:
            Arguments by name.
        """
        told: dict[str, Any] = {
            "hidden_states": noised.latents,
            "timestep": noised.timestep,
            "encoder_hidden_states": noised.condition.states,
        }
        if "mask" in self.encoded:
            told["encoder_attention_mask"] = noised.condition.mask
        if "pooled" in self.encoded:
            told["pooled_projections"] = noised.condition.pooled
        return told

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

    def num_text_tokens(self, denoiser: Any, inputs: Mapping[str, Any], path: str) -> int:
        """Return how many tokens attend beside those of the image, in a layer that sees text.

        Args:
            denoiser: The denoiser.
            inputs: Arguments of its forward, by name.
            path: Name of the attention module in the denoiser.

        Returns:
            Their number.

        Raises:
            SpectralError: If the prompts of a batch differ in length.
        """
        mask = inputs.get("encoder_attention_mask")
        if mask is None:
            return int(inputs["encoder_hidden_states"].shape[1])
        lengths = mask.sum(dim=1).unique().tolist()
        if len(lengths) > 1:
            raise SpectralError(
                "encoder_attention_mask",
                expected="prompts of one length",
                got=f"{lengths} tokens",
                fix="Capture images with different prompts one at a time",
            )
        return int(lengths[0])

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

    def rotation(self, arguments: Mapping[str, Any]) -> Tensor | None:
        """Return the rotations that a layer applies to all its tokens.

        Args:
            arguments: Arguments of the attention module, by name.

        Returns:
            `(..., tokens, channels)`, or None if it is given none.
        """
        rotation = arguments.get("image_rotary_emb")
        return rotation[0] if isinstance(rotation, tuple) else rotation

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
            `(..., tokens, channels)`, or None if the family has none.
        """
        return None
