"""Generate a picture from a prompt, with the eigenvectors of the denoiser's layers at chosen steps."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import diffusers
from diffusers.utils import BaseOutput
from torch import Tensor

from hf_spectral.capture import capture_attention
from hf_spectral.checks import require_known, require_one_of
from hf_spectral.errors import SpectralError
from hf_spectral.pipelines.diffusers.noise import given_generators
from hf_spectral.pipelines.diffusers.outputs import OutputType, outputs_of
from hf_spectral.pipelines.diffusers.prompt import PromptEmbeddings, host_pipeline, missing_encoders
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.outputs import Analysis
from hf_spectral.pipelines.settings import CUT_NAMES
from hf_spectral.records import AttentionRecord
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import working_copy
from hf_spectral.tensor_files import one_line

_NOTHING_READ: Mapping[str, Any] = {"notes": ()}


@dataclasses.dataclass
class GeneratedOutput(BaseOutput):
    """A generated picture, and the eigenvectors of the denoiser's layers at each step.

    Args:
        image: PIL image; with `output_type` an array, a tensor or latents, as the host gives them.
        steps: The denoising steps, the first being 0.
        outputs: One for each step, as `SpectralDiffusionPipeline.__call__` returns it for a picture.
    """

    image: Any
    steps: tuple[int, ...]
    outputs: list[Any]


class _Steps:
    """Solves each step as soon as the next begins, so that memory holds one."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._analysis = Analysis(settings, 1)
        self._last: AttentionRecord | None = None
        self.layers = self._analysis.layers
        self.timesteps: list[float] = []
        self.found: list[list[SpectralResult]] = []

    def add(self, record: AttentionRecord) -> None:
        if self._last is not None and record.index <= self._last.index:
            self.finish()
        self._last = record
        self._analysis.add(record)

    def finish(self) -> None:
        if self._last is None:
            return
        self.timesteps.append(float(self._last.timestep or 0))
        self.found += self._analysis.results([_NOTHING_READ])
        self._analysis = Analysis(self._settings, 1)


def generated(
    pipe: Any, prompt: str | None, steps: Sequence[int] | None, settings: Mapping[str, Any], call: Mapping[str, Any]
) -> GeneratedOutput:
    """Make a picture by the host's own pipeline, and solve one problem per chosen step.

    Args:
        pipe: The spectral pipeline, whose components are used.
        prompt: What to make; None with `prompt_embeds` among the further arguments.
        steps: Denoising steps, the first being 0; None means all.
        settings: Of the problem, as `over_defaults` returns them.
        call: Further arguments of the host's call.

    Returns:
        Picture and eigenvectors.

    Raises:
        SpectralError: If the denoiser reads no prompt, its text encoders are not loaded, a step does not come, or
            arguments do not go together.
    """
    name = _checked_host(pipe, prompt, call)
    taken = inspect.signature(getattr(diffusers, name).__call__).parameters
    require_known(call, taken.keys() - {"self", "prompt"})
    _check_call(call)
    output_type = call.get("output_type", "pil")
    is_latent = output_type == "latent"
    if is_latent and settings.get("method") == "tree":
        raise SpectralError("method", expected="'ward' or 'kmeans'", got="'tree' without a picture", fix="Leave it out")
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # Sampling counts its steps in it.
    host = host_pipeline(name, pipe.components | {"scheduler": scheduler})
    host.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    solving = _Steps(settings)
    own_steps = next((call[one] for one in ("timesteps", "sigmas") if call.get(one) is not None), None)
    count = call.get("num_inference_steps") or taken["num_inference_steps"].default
    chosen = range(count if own_steps is None else len(own_steps)) if steps is None else sorted(set(steps))
    try:
        with capture_attention(pipe.denoiser, solving.add, solving.layers, chosen):
            image = host(prompt=prompt, **call).images[0]
    except SpectralError as error:
        if error.argument != "steps" or not getattr(host, "interrupt", False):  # A callback may end it early.
            raise
    except ValueError as error:
        expected, fix = f"arguments that {name} takes together", "Change them"
        raise SpectralError("settings", expected=expected, got=one_line(error), fix=fix) from error
    solving.finish()
    picture = None if is_latent else read_image(image)
    cut: dict[str, Any] = {"output_type": "pt", "method": "ward"} if is_latent else {"output_type": output_type}
    cut |= {one: settings[one] for one in CUT_NAMES & settings.keys()}
    outputs = []
    for results, timestep in zip(solving.found, solving.timesteps, strict=True):
        grid = results[0].grid
        size = grid.shape if picture is None else (picture.height, picture.width)
        seen = {"picture": None if picture is None else working_copy(picture), "size": size, "read_size": size}
        outputs.append(outputs_of(results, seen, (timestep,), **cut))
    return GeneratedOutput(image, tuple(chosen)[: len(outputs)], outputs)


def _checked_host(pipe: Any, prompt: str | None, call: Mapping[str, Any]) -> str:
    """Return the name of the host's pipeline, once it is known that it can read the prompt."""
    name = pipe.family.prompt_host(pipe.denoiser.config)
    is_encoded = any(call.get(one) is not None for one in PromptEmbeddings.__annotations__)
    if name is None:
        got = f"{pipe.family.class_name}, which reads none"
    elif not is_encoded and (missing := missing_encoders(pipe)):
        got = f"no {', '.join(missing)}"
    elif isinstance(prompt, str) != is_encoded:
        return name
    else:
        got = repr(prompt)
    raise SpectralError(
        "prompt",
        expected="one string or its embeddings, and a denoiser that reads prompts, loaded with its text encoders",
        got=got,
        fix="Or run the host's own pipeline inside capture_attention(denoiser, steps=[...])",
    )


def _check_call(call: Mapping[str, Any]) -> None:
    """Check arguments of the host's call that it does not check, or whose errors say less."""
    for argument, only in (("num_images_per_prompt", 1), ("return_dict", True)):
        if call.get(argument, only) != only:
            expected = "one picture, which `image` of the output holds"
            raise SpectralError(argument, expected=expected, got=call[argument], fix="Leave it out")
    given_generators(call.get("generator"), 1)
    of_prompt, negative = (call.get(f"{sign}prompt_embeds") for sign in ("", "negative_"))
    if isinstance(of_prompt, Tensor) and isinstance(negative, Tensor) and of_prompt.shape != negative.shape:
        raise SpectralError(
            "negative_prompt_embeds",
            expected=f"the shape of `prompt_embeds`, {tuple(of_prompt.shape)}",
            got=tuple(negative.shape),
            fix="Encode both alike",
        )
    require_one_of("output_type", call.get("output_type", "pil"), (*get_args(OutputType), "latent"))
