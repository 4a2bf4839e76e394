"""`hf-spectral layers`: what a backbone is made of, as far as attention goes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from hf_spectral.atomic import require_writable
from hf_spectral.cli.common import DONE, add_command, load
from hf_spectral.errors import SpectralError
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.report import list_layers


def add_parsers(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the program.
    """
    text = "every self-attention layer: grid, heads, width, tokens, pathways"
    parser = add_command(commands, "layers", run_layers, text, "--resolution --prompt --revision --dtype --device")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="repository id or folder; default: dinov2-small")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table as CSV too")


def run_layers(options: argparse.Namespace) -> int:
    """Print the table of the layers, from one picture of noise.

    Args:
        options: What `layers --help` lists.

    Returns:
        The exit code.

    Raises:
        SpectralError: If the file to write is a folder.
    """
    if options.output is not None:
        if os.path.isdir(options.output):
            raise SpectralError(
                "--output", expected="a file to write", got=f"the folder {options.output}", fix="Name a file in it"
            )
        require_writable(options.output.parent, "--output")
    pipe = load(options)
    if not isinstance(pipe, SpectralPathwaysPipeline):  # One timestep shows all layers.
        pipe = pipe.at(pipe.describe_backbone()["timesteps"][0])
    listing = list_layers(pipe, options.resolution)
    print(listing.to_text())
    if options.output is not None:
        print(f"Table written to {listing.to_csv(options.output)}")
    return DONE
