"""What the commands share: exit codes, arguments, and how a backbone is loaded."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from tqdm.auto import tqdm

from hf_spectral.errors import SpectralError
from hf_spectral.pipelines import SpectralPathwaysPipeline, pipeline
from hf_spectral.records import PATHWAYS

if TYPE_CHECKING:
    from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

DONE, SOME_FAILED, MISTAKE, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, as all errors are reported."""

    def error(self, message: str) -> NoReturn:
        """Write the message in one line, and exit.

        Args:
            message: Description of the mistake.

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


def _number(text: str) -> float | int:
    return int(text) if text.isdigit() else float(text)


# Each option that several commands take, and how argparse reads it.
_SHARED: dict[str, dict[str, Any]] = {
    "folder": {"metavar": "FOLDER", "help": "pictures, subfolders included"},
    "--model": {"help": "repository id or folder (default: facebook/dinov2-small)"},
    "--pathway": {"choices": [*PATHWAYS, "both"], "default": "both", "help": "default: %(default)s"},
    "--num-eigenvectors": {"type": int, "metavar": "N", "help": "default: %(default)s"},
    "--resolution": {"type": int, "metavar": "PIXELS", "help": "longer side; default: the backbone's image size"},
    "--layers": {"type": int, "nargs": "+", "metavar": "INDEX", "help": "default: all"},
    "--max-width": {"type": int, "metavar": "N", "help": "bound on the Gram matrix; default: none, exact"},
    "--batch-size": {"type": int, "default": 1, "metavar": "N", "help": "pictures read together; default: 1"},
    "--on-error": {"choices": ("raise", "skip"), "default": "raise", "help": "default: raise"},
    "--seed": {"type": int, "default": 0, "help": "default: 0"},
    "--timesteps": {
        "type": _number,
        "nargs": "+",
        "metavar": "T",
        "help": "of a diffusion model, from 0 (data) to noise; default: 5, 15 and 25 percent of its schedule",
    },
    "--prompt": {"metavar": "TEXT", "help": "prompt of a diffusion model; default: none"},
    "--output": {"type": Path, "metavar": "DIR", "help": "default: %(default)s"},
    "--device": {"help": "cpu, cuda, cuda:1, mps; default: the first accelerator, else cpu"},
}


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, shared: str = "", **defaults: Any
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: Subparsers of the program.
        name: Name of the command.
        run: Called with the parsed options; returns the exit code.
        text: Help text.
        shared: Options that it shares with other commands, separated by spaces.
        **defaults: Defaults of these options, where they have none or another one.

    Returns:
        Its parser, for the options that no other command has.
    """
    parser = commands.add_parser(name, help=text)
    for option in shared.split():
        parser.add_argument(option, **_SHARED[option])
    parser.set_defaults(command=run, **defaults)
    return parser


def chosen(options: argparse.Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the options that are arguments of a function.

    Args:
        options: The parsed options.
        function: The function.

    Returns:
        Values by the name of the argument.
    """
    names = inspect.signature(function).parameters
    return {name: value for name, value in vars(options).items() if name in names}


def load(
    model: str | None,
    device: str | None,
    timesteps: Sequence[float] | None = None,
    prompt: str | None = None,
    noise_seed: int = 0,
) -> SpectralPathwaysPipeline | SpectralDiffusionPipeline:
    """Load the backbone.

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


def count_or_auto(text: str) -> int | Literal["auto"] | None:
    """Read the number of segments.

    Args:
        text: What the user wrote.

    Returns:
        A number, "auto", or None for none.

    Raises:
        argparse.ArgumentTypeError: If it is none of these.
    """
    if text in ("auto", "none"):
        return "auto" if text == "auto" else None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, auto or none, got {text!r}") from None
