"""Tiny random pipelines of the host; a new file here is a new family in every test of denoisers."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class TinyPipeline:
    """A recipe for a tiny pipeline of the host, and what its capture must look like.

    Args:
        build: Builds the pipeline; the caller seeds torch.
        grid: Rows and columns of the finest token grid of a picture of 60 x 90 pixels read at `resolution`.
        num_grids: How many sizes of grids its layers have.
        resolution: Longer side at which pictures are read, in pixels.
        call: Arguments of the host's own call, which makes a picture of `resolution` x `resolution` pixels.
        prompt: A prompt, or "" for a denoiser that reads none.
        step: From what the host tells as the timestep to the timestep of the schedule.
        pathways: Those that its layers serve.
        same_size: False if the host's own call makes pictures of another size than asked for.
    """

    build: Callable[[], Any]
    grid: tuple[int, int]
    num_grids: int = 1
    resolution: int = 32
    call: dict = dataclasses.field(default_factory=dict)
    prompt: str = ""
    step: Callable[[float], float] = float
    pathways: tuple[str, ...] = ("where", "what")
    same_size: bool = True

    def pipeline(self, seed=0):
        """Build the pipeline, every parameter of its denoiser random (adaptive norms start as zeros)."""
        torch.manual_seed(seed)
        pipe = self.build()
        with torch.no_grad():
            for parameter in denoiser_of(pipe).parameters():
                parameter.normal_(std=0.1)
        denoiser_of(pipe).eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe


def denoiser_of(pipe):
    """Return the denoiser of a pipeline."""
    return getattr(pipe, "unet", None) or pipe.transformer


TINY = {
    found.name: importlib.import_module(f"{__name__}.{found.name}").TINY for found in pkgutil.iter_modules(__path__)
}
