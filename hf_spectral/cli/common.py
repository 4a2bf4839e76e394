"""What the commands share: exit codes, arguments, and how a backbone is loaded."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
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


#: What a command needs to read a dataset, and to load a model.
DATASET = "dataset --split --streaming --dataset-revision --image-column --num-workers"
MODEL = "--model --revision --dtype --device"
# Each option that several commands take, and how argparse reads it.
_SHARED: dict[str, dict[str, Any]] = {
    "dataset": {
        "nargs": "?",
        "default": argparse.SUPPRESS,  # Else it would overwrite what `--dataset` has set.
        "metavar": "FOLDER",
        "help": "pictures, subfolders included",
    },
    "--dataset": {"metavar": "ID", "help": "in place of a folder: a dataset on the Hub, user/name"},
    "--split": {"metavar": "NAME", "help": "of the dataset on the Hub; default: the only one"},
    "--streaming": {"action": "store_true", "help": "read the dataset on the Hub without storing it"},
    "--dataset-revision": {"dest": "revision", "metavar": "BRANCH", "help": "of the dataset; default: main"},
    "--image-column": {"metavar": "NAME", "help": "of the dataset; default: the only column of images"},
    "--num-workers": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "threads that read ahead; default: 0",
    },
    "--model": {"help": "repository id or folder (default: facebook/dinov2-small)"},
    "--dtype": {"dest": "model_dtype", "choices": ("float32", "float16", "bfloat16"), "help": "of the model"},
    "--revision": {"dest": "model_revision", "metavar": "BRANCH", "help": "of the model on the Hub; default: main"},
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
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
    shared: str = "",
    **defaults: Any,
) -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: Subparsers of the program.
        name: Name of the command.
        run: Called with the parsed options; returns the exit code, None if all is done.
        text: Help text.
        shared: Options that it shares with other commands, separated by spaces.
        **defaults: Defaults of these options, where they have none or another one.

    Returns:
        Its parser, for the options that no other command has.
    """
    parser = commands.add_parser(name, help=text)
    if "dataset" in shared.split():
        either = parser.add_mutually_exclusive_group(required=True)
        for option in ("dataset", "--dataset"):
            either.add_argument(option, **_SHARED[option])
    for option in shared.split():
        if option != "dataset":
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


def load(options: argparse.Namespace, **at: Any) -> SpectralPathwaysPipeline | SpectralDiffusionPipeline:
    """Load the backbone.

    Args:
        options: The parsed options of a command, `model`, `device`, `model_dtype`, `model_revision`, `timesteps`,
            `prompt` and `seed` as far as it has them.
        **at: `timesteps`, `prompt` and `seed` of a diffusion model, in place of these options.

    Returns:
        The pipeline.

    Raises:
        SpectralError: If the backbone or the device cannot be used, or is no diffusion model where one is needed.
    """
    given = {"timesteps": None, "prompt": None, "seed": 0, "model": None, "device": None, **vars(options)}
    loading = {name: given.get(f"model_{name}") for name in ("dtype", "revision")}
    if loading["revision"] is not None and given["model"] is None:
        raise SpectralError("--revision", expected="--model beside it", got="none", fix="Name the model")
    told = {name: value for name, value in loading.items() if value is not None}
    pipe = pipeline(given["model"], device=given["device"], **told)
    at = at or {name: given[name] for name in ("timesteps", "prompt", "seed")}
    if not isinstance(pipe, SpectralPathwaysPipeline):
        pipe.set_progress_bar_config(leave=False)
        return pipe.at(**at)
    for name in ("timesteps", "prompt"):
        if at[name] is not None:
            raise SpectralError(
                f"--{name}", expected="a diffusion model beside it", got=type(pipe.model).__name__, fix="Leave it out"
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
