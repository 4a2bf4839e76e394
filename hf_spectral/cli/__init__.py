"""The command line `hf-spectral`, one module per group of commands.

Exit codes: 0, all done; 1, some pictures failed and the others are written; 2, a mistake in the arguments; 130,
interrupted by Ctrl-C; 141, the reader of the output has gone, as after `| head`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import transformers
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

import hf_spectral
from hf_spectral.atomic import require_writable
from hf_spectral.cli import analyze, dataset, demo, hub, layers, report
from hf_spectral.cli.common import CLOSED_PIPE, DONE, INTERRUPTED, MISTAKE, Parser, complain
from hf_spectral.errors import HFSpectralError

_FIRST = """\
begin here:
  hf-spectral quickstart                            a sample picture; needs no Hub
  hf-spectral analyze photo.jpg --output out/       your own
  hf-spectral fit photos/ --output basis/           one basis for a folder, or --dataset user/photos --split train
  hf-spectral analyze --help                        the options of a command
"""
_GROUPS = (analyze, dataset, layers, report, hub, demo)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; a parsed command carries its function as `command`."""
    parser = Parser(
        prog="hf-spectral",
        description="The what and where pathways of a frozen vision backbone, from all its attention layers at once.",
        epilog=_FIRST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if find_spec("shtab") is not None:
        import shtab

        shtab.add_argument_to(parser, "--print-completion", help="print a script that completes words in a shell")
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
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # Here and not at exit, where a closed pipe can no longer be told.
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # A stream that is no file.
                os.dup2(nowhere, stream.fileno())
        return CLOSED_PIPE


def _run(arguments: Sequence[str] | None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # A folder's name may be no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = build_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    for before, word in itertools.pairwise(["", *words]):
        # An empty word, as of an unset shell variable, would stand for the current folder. A prompt may be empty.
        is_empty = not word.strip() or re.fullmatch(r"--[\w-]+=\s*", word)
        if is_empty and "--prompt" not in (before, word.rstrip("= ")):
            name = word.rstrip("= ") or before
            parser.error(f"{name or 'COMMAND'}: expected a value, got an empty one")
    options = parser.parse_args(words)
    shows_transfers = not are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()  # It turns those of downloads and pushes off too.
    if shows_transfers:
        enable_progress_bars()
    verbosity = transformers.utils.logging.get_verbosity()
    logging.getLogger("hf_spectral").setLevel(verbosity)
    transformers.utils.logging.set_verbosity_error()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        if "output" in options:  # Before there is work to lose.
            require_writable(options.output, "--output")
        return command(options) or DONE
    except HFSpectralError as error:
        complain(str(error))
        return MISTAKE
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
