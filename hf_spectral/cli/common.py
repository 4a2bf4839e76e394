"""What the commands share: exit codes, arguments, and how a backbone is loaded."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm.auto import tqdm

from hf_spectral.errors import SpectralError
from hf_spectral.pipelines import SpectralPathwaysPipeline, pipeline

if TYPE_CHECKING:
    from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

DONE, SOME_FAILED, MISTAKE, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, as everything else is told."""

    def error(self, message: str) -> NoReturn:
        """Write the line, and exit.

        Args:
            message: What is wrong.

        Raises:
            SystemExit: With the code of a mistake.
        """
        complain(f"{message}. See {self.prog} --help")
        raise SystemExit(MISTAKE)


def complain(text: str) -> None:
    """Write one line for the user, beside a progress bar that may be there.

    Args:
        text: The line.
    """
    line = " ".join(text.splitlines()).encode(errors="backslashreplace").decode()  # A file's name may be no text.
    tqdm.write(f"hf-spectral: {line}", file=sys.stderr)


def add_output(parser: argparse.ArgumentParser, default: str = "spectral-output") -> None:
    """Add `--output` and `--device`.

    Args:
        parser: Of a command.
        default: Folder to write to.
    """
    parser.add_argument("--output", type=Path, default=Path(default), metavar="DIR", help=f"default: {default}")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`.

    Args:
        parser: Of a command.
    """
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: the first accelerator, else cpu")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the folder of pictures and how it is read.

    Args:
        parser: Of a command.
    """
    parser.add_argument("folder", metavar="FOLDER", help="pictures, subfolders included")
    parser.add_argument("--model", help="repository id or folder (default: facebook/dinov2-small)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures read together; default: 1")
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="default: raise")


def add_noising(parser: argparse.ArgumentParser) -> None:
    """Add `--timesteps` and `--prompt`, which diffusion models are looked at with.

    Args:
        parser: Of a command.
    """
    parser.add_argument(
        "--timesteps",
        type=_number,
        nargs="+",
        metavar="T",
        help="of a diffusion model, from 0 (data) to noise; default: 5, 15 and 25 percent of its schedule",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what a diffusion model is told; default: nothing")


def load(
    model: str | None,
    device: str | None,
    timesteps: Sequence[float] | None = None,
    prompt: str | None = None,
    noise_seed: int = 0,
) -> SpectralPathwaysPipeline | SpectralDiffusionPipeline:
    """Load the backbone; what cannot be loaded is the user's to mend.

    Args:
        model: Repository id or folder, or None for the default.
        device: The user's choice, or None.
        timesteps: Of a diffusion model; None takes its defaults.
        prompt: Of a diffusion model, or None.
        noise_seed: Of a diffusion model.

    Returns:
        The pipeline.

    Raises:
        SpectralError: If the backbone or the device cannot be used, or is no diffusion model where one is needed.
    """
    pipe = pipeline(model, device=device)
    if not isinstance(pipe, SpectralPathwaysPipeline):
        pipe.set_progress_bar_config(leave=False)
        return pipe.at(timesteps, prompt, noise_seed)
    for option, value in (("--timesteps", timesteps), ("--prompt", prompt)):
        if value is not None:
            raise SpectralError(
                option, expected="a diffusion model beside it", got=type(pipe.model).__name__, fix="Leave it out"
            )
    return pipe


def _number(text: str) -> float | int:
    return int(text) if text.isdigit() else float(text)
