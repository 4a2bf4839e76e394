"""`hf-spectral layers`: the self-attention layers of a backbone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from hf_spectral.atomic import require_writable
from hf_spectral.cli.common import add_command, load
from hf_spectral.errors import SpectralError
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.report import list_layers


def add_parsers(commands: Any) -> None:
    """Add `layers` to the subparsers of the program."""
    text = "every self-attention layer: grid, heads, width, tokens, pathways"
    parser = add_command(commands, "layers", _layers, text, "--resolution --prompt --revision --dtype --device")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="repository id or folder; default: dinov2-small")
    parser.add_argument("--output", dest="table", type=Path, metavar="FILE", help="write the table as CSV too")


def _layers(options: argparse.Namespace) -> None:
    """Print the table of the layers, from one picture of noise."""
    if options.table is not None:
        if os.path.isdir(options.table):
            raise SpectralError(
                "--output", expected="a file to write", got=f"the folder {options.table}", fix="Name a file in it"
            )
        require_writable(options.table.parent, "--output")
    pipe = load(options)
    if not isinstance(pipe, SpectralPathwaysPipeline):  # One timestep shows all layers.
        pipe = pipe.at(pipe.describe_backbone()["timesteps"][0])
    listing = list_layers(pipe, options.resolution)
    print(listing.to_text())
    if options.table is not None:
        print(f"Table written to {listing.to_csv(options.table)}")
