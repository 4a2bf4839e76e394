"""The command line `hf-spectral`, one module a group of commands.

Exit codes: 0, all done; 1, some pictures failed and the others are written; 2, a mistake in what was asked.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

import transformers

import hf_spectral
from hf_spectral.cli import analyze, dataset, demo, hub, layers, report
from hf_spectral.cli.common import MISTAKE, complain
from hf_spectral.errors import HFSpectralError

_GROUPS = (analyze, dataset, layers, report, hub, demo)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; a parsed command carries its function as `command`."""
    parser = argparse.ArgumentParser(
        prog="hf-spectral",
        description="The what and where pathways of a frozen vision backbone, from all its attention layers at once.",
    )
    parser.add_argument("--version", action="version", version=f"hf-spectral {hf_spectral.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in _GROUPS:
        group.add_parsers(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except HFSpectralError as error:
        complain(str(error))
        return MISTAKE
