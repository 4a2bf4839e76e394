"""A picture that a denoiser makes from a prompt, with the eigenvectors of its layers at chosen steps on the way."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
from diffusers.utils import BaseOutput
from PIL import Image

from hf_spectral.capture import capture_attention
from hf_spectral.errors import SpectralError
from hf_spectral.pipelines.diffusers.outputs import outputs_of
from hf_spectral.pipelines.diffusers.prompt import missing_encoders
from hf_spectral.pipelines.outputs import Analysis
from hf_spectral.pipelines.settings import CUT_NAMES
from hf_spectral.records import AttentionRecord
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import working_copy

_NOTHING_READ: Mapping[str, Any] = {"notes": ()}


@dataclasses.dataclass
class GeneratedOutput(BaseOutput):
    """A generated picture, and what the denoiser's layers saw of it on the way.

    Args:
        image: PIL image.
        steps: The denoising steps, the first being 0.
        outputs: One for each step, as `SpectralDiffusionPipeline.__call__` returns it for a picture.
    """

    image: Image.Image
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
    pipe: Any, prompt: str, steps: Sequence[int] | None, settings: Mapping[str, Any], call: Mapping[str, Any]
) -> GeneratedOutput:
    """Make a picture by the host's own pipeline, and solve one problem per chosen step.

    Args:
        pipe: The spectral pipeline, whose components are used.
        prompt: What to make.
        steps: Denoising steps, the first being 0; None means all.
        settings: Of the problem, as `over_defaults` returns them.
        call: Further arguments of the host's call.

    Returns:
        Picture and eigenvectors.

    Raises:
        SpectralError: If the denoiser reads no prompt, its text encoders are not loaded, or a step does not come.
    """
    name, further = pipe.family.prompt_host(pipe.denoiser)
    missing = [] if name is None else missing_encoders(pipe.family, pipe.components, pipe.denoiser)
    if name is None or missing or not isinstance(prompt, str):
        got = f"{pipe.family.class_name}, which reads none" if name is None else f"no {', '.join(missing)}"
        raise SpectralError(
            "prompt",
            expected="one string, and a denoiser that reads prompts, loaded with its text encoders",
            got=repr(prompt) if name is not None and not missing else got,
            fix="Or run the host's own pipeline inside capture_attention(denoiser, steps=[...])",
        )
    host_class = getattr(diffusers, name)
    taken = inspect.signature(host_class.__init__).parameters
    parts = {part: one for part, one in pipe.components.items() if part in taken}
    parts["scheduler"] = type(pipe.scheduler).from_config(pipe.scheduler.config)  # Sampling counts its steps in it.
    host = host_class(**{**further, **parts})
    host.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    solving = _Steps(settings)
    count = call.get("num_inference_steps") or inspect.signature(host_class.__call__).parameters["num_inference_steps"]
    chosen = range(count if isinstance(count, int) else count.default) if steps is None else sorted(set(steps))
    with capture_attention(pipe.denoiser, solving.add, solving.layers, chosen):
        image = host(prompt=prompt, **call).images[0]
    solving.finish()
    size = (image.height, image.width)
    seen = {"picture": working_copy(image), "size": size, "read_size": size}
    cut = {name: settings[name] for name in CUT_NAMES & settings.keys()}
    outputs = [
        outputs_of(results, seen, (timestep,), True, **cut)
        for results, timestep in zip(solving.found, solving.timesteps, strict=True)
    ]
    return GeneratedOutput(image, tuple(chosen), outputs)
