"""How a denoiser reads pictures: at which timesteps, with which prompt and which noise."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_spectral.capture import attention_fingerprint, capture_attention
from hf_spectral.errors import SpectralError
from hf_spectral.families.diffusers import Condition
from hf_spectral.pipelines.backbone import blamed, warn_once
from hf_spectral.pipelines.diffusers.latents import half_precision_explained
from hf_spectral.pipelines.diffusers.noise import is_flow, noised, num_timesteps, told
from hf_spectral.pipelines.diffusers.prompt import forward_arguments
from hf_spectral.records import AttentionRecord, SkippedLayer


@dataclasses.dataclass(frozen=True)
class Reading:
    """Timesteps, prompt and noise: the same for all pictures, so that their results can be compared.

    Args:
        timesteps: Timesteps at which the denoiser is run, from 0 (data) to noise.
        prompt: The prompt, or a name that tells embeddings that were given from others.
        condition: Embeddings of the prompt.
        seed: Seed of the noise, together with the pixels of each picture.
    """

    timesteps: tuple[float, ...]
    prompt: str
    condition: Condition
    seed: int

    def require_each_timestep_once(self) -> None:
        """Reject repetitions: over a dataset, the timestep identifies a layer.

        Raises:
            SpectralError: If a timestep occurs twice.
        """
        if len(set(self.timesteps)) < len(self.timesteps):
            raise SpectralError(
                "timesteps",
                expected="each one once over a dataset",
                got=list(self.timesteps),
                fix="Remove the repetitions; num_noise_samples is for single pictures",
            )

    def generator(self, pixels_digest: int) -> torch.Generator:
        """Return the source of one picture's noise.

        It depends on the picture and the seed alone, not on its place in a batch, a shard or a process. Noise shared by
        all pictures would be a pattern of positions, which the `where` pathway would find.

        Args:
            pixels_digest: Number that `digest` returned.

        Returns:
            A generator on the CPU, so that every device sees the same noise.
        """
        return torch.Generator().manual_seed((self.seed ^ pixels_digest) % 2**63)

    def describe(self, pipe: Any, resolution: int | None) -> dict[str, Any]:
        """Describe a pipeline and how pictures are read by it, without a path of this machine.

        Args:
            pipe: The pipeline.
            resolution: Longer side of the pictures, in pixels; None stands for the denoiser's own.

        Returns:
            `id` (repository, or the last part of a folder's name), `revision` (commit, if it came from the Hub),
            `model_type` (class of the denoiser), `vae`, `text_encoders` (classes), `noise`, `timesteps`, `prompt`,
            `noise_seed`, `resolution`, `attention_weights` (see `attention_fingerprint`): JSON values.
        """
        encoders = [pipe.components.get(f"text_encoder{ending}") for ending in ("", "_2", "_3", "_4")]
        return {
            **pipe.identity(),
            "vae": None if pipe.vae is None else type(pipe.vae).__name__,
            "text_encoders": [type(one).__name__ for one in encoders if one is not None],
            "noise": "flow" if is_flow(pipe.family, pipe.scheduler) else "diffusion",
            "timesteps": list(self.timesteps),
            "prompt": self.prompt,
            "noise_seed": self.seed,
            "resolution": resolution,
            "attention_weights": attention_fingerprint(pipe.denoiser),
        }

    def record(
        self,
        pipe: Any,
        group: Sequence[Mapping[str, Any]],
        on_record: Callable[[AttentionRecord], object],
        layers: Iterable[int] | None,
        steps: Iterable[float] | None = None,
        on_step_end: StepEnd | None = None,
    ) -> list[SkippedLayer]:
        """Run the denoiser once per step and pass each layer on as it arrives.

        Args:
            pipe: The pipeline of the denoiser.
            group: Pictures of one size, as `preprocess` returned them; `generator` of one is the source of its noise.
            on_record: Receives the records of all pictures of the group.
            layers: Indices of the layers to record; None means all.
            steps: The timesteps, as often as each is to be run; None runs each once.
            on_step_end: Called after each of them.

        Returns:
            Layers that gave no record, with reasons.

        Raises:
            SpectralError: If a layer holds NaN, or there is no such layer.
        """
        warn_once(pipe, group)
        with blamed(pipe.denoiser, group[0]["read_size"], lambda *black: self._run(pipe, [pipe.prepare(*black)])):
            return self._run(pipe, group, on_record, None if layers is None else tuple(layers), steps, on_step_end)

    @torch.no_grad()
    def _run(
        self,
        pipe: Any,
        group: Sequence[Mapping[str, Any]],
        on_record: Callable[[AttentionRecord], object] = lambda record: None,
        layers: Sequence[int] | None = None,
        steps: Iterable[float] | None = None,
        on_step_end: StepEnd | None = None,
    ) -> list[SkippedLayer]:
        generators = [prepared.get("generator") or self.generator(prepared["digest"]) for prepared in group]
        latents, condition = torch.cat([prepared["latents"] for prepared in group]), self.condition
        skipped: list[SkippedLayer] = []
        for index, step in enumerate(self.timesteps if steps is None else steps):
            arguments = forward_arguments(
                pipe,
                noised(latents, step, pipe.family, pipe.scheduler, generators),
                step / num_timesteps(pipe.scheduler),
                torch.full((len(group),), told(step, pipe.scheduler), device=latents.device),
                condition,
                group[0]["read_size"],
            )
            hand_on = functools.partial(_hand_on, on_record, float(step))
            with half_precision_explained(), capture_attention(pipe.denoiser, hand_on, layers) as capture:
                pipe.denoiser(**arguments, return_dict=False)
            skipped = capture.skipped
            if on_step_end is not None:
                latents, condition = on_step_end(pipe, index, step, latents, condition)
        return skipped


@dataclasses.dataclass(frozen=True)
class StepEnd:
    """The host's `callback_on_step_end`, which sees tensors after each timestep and may replace them.

    Args:
        callback: Called with pipeline, index of the step, timestep and tensors by name; returns tensors by name.
        names: Tensors that it is shown: "latents", the picture's own without noise, and "prompt_embeds".
    """

    callback: Callable[..., Mapping[str, Tensor] | None]
    names: Sequence[str]

    @classmethod
    def of(cls, callback: Any, names: Sequence[str] | None, known: Sequence[str]) -> StepEnd | None:
        """Check what a call says about its callback.

        Args:
            callback: A function, a `PipelineCallback`, which names its tensors, or None.
            names: Names of tensors, or None for the latents.
            known: All names that there are.

        Returns:
            None without a callback.

        Raises:
            SpectralError: If it cannot be called, a name is unknown, or there are names without a callback.
        """
        if callback is None and names is None:
            return None
        if not callable(callback):
            raise SpectralError(
                "callback_on_step_end",
                expected="a function of pipeline, step, timestep and tensors by name",
                got=repr(callback),
                fix="Give def on_step_end(pipe, step, timestep, callback_kwargs): return callback_kwargs",
            )
        chosen = getattr(callback, "tensor_inputs", ("latents",) if names is None else tuple(names))
        if unknown := sorted(set(chosen) - set(known)):
            argument, expected = "callback_on_step_end_tensor_inputs", f"names among {', '.join(known)}"
            raise SpectralError(argument, expected=expected, got=unknown, fix="Leave the others out")
        return cls(callback, chosen)

    def __call__(
        self, pipe: Any, index: int, timestep: float, latents: Tensor, condition: Condition
    ) -> tuple[Tensor, Condition]:
        """Call back, and return what the next timestep reads.

        Args:
            pipe: The pipeline.
            index: Of the step.
            timestep: The timestep.
            latents: Of the pictures, without noise.
            condition: Embeddings of the prompt.

        Returns:
            Latents and embeddings.

        Raises:
            SpectralError: If the callback returns tensors of other shapes.
        """
        seen: dict[str, Any] = {"latents": latents, "prompt_embeds": condition.states}
        given = self.callback(pipe, index, timestep, {name: seen[name] for name in self.names}) or {}
        read = {name: given.get(name, own) for name, own in seen.items()}
        for name, own in seen.items():
            if own is not None and getattr(read[name], "shape", None) != own.shape:
                raise SpectralError(
                    "callback_on_step_end",
                    expected=f"{name!r} of shape {tuple(own.shape)} from it",
                    got=f"shape {tuple(read[name].shape)}" if isinstance(read[name], Tensor) else repr(read[name]),
                    fix="Return tensors of the shapes that it was given",
                )
        return read["latents"], dataclasses.replace(condition, states=read["prompt_embeds"])


def digest(pixels: Tensor) -> int:
    """Return a number that identifies a picture by the pixels that the denoiser reads.

    Args:
        pixels: Pixels, as `to_pixels` returned them.

    Returns:
        63 bits.
    """
    return int.from_bytes(hashlib.sha256(pixels.contiguous().numpy().tobytes()).digest()[:8], "big") >> 1


def _hand_on(on_record: Callable[[AttentionRecord], object], timestep: float, record: AttentionRecord) -> None:
    """Pass a record on with the timestep of the pipeline: the denoiser may count in other units."""
    on_record(dataclasses.replace(record, timestep=timestep))
