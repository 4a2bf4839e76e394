"""What the commands share: exit codes, arguments, and how a backbone is loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_spectral.errors import SpectralError
from hf_spectral.pipelines import SpectralPathwaysPipeline, pipeline

DONE, SOME_FAILED, MISTAKE = 0, 1, 2


def complain(text: str) -> None:
    """Write one line for the user, beside a progress bar that may be there.

    Args:
        text: The line.
    """
    tqdm.write(f"hf-spectral: {text}", file=sys.stderr)


def add_output(parser: argparse.ArgumentParser, default: str = "spectral-output") -> None:
    """Add `--output` and `--device`.

    Args:
        parser: Of a command.
        default: Folder to write to.
    """
    parser.add_argument("--output", type=Path, default=Path(default), metavar="DIR", help=f"default: {default}")
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


def load(model: str | None, device: str | None, settings: dict[str, Any] | None = None) -> SpectralPathwaysPipeline:
    """Load the backbone; what cannot be loaded is the user's to mend.

    Args:
        model: Repository id or folder, or None for the default.
        device: The user's choice, or None.
        settings: Defaults of the pipeline's call.

    Returns:
        The pipeline, its settings checked.

    Raises:
        SpectralError: If a setting is wrong, or the backbone or the device cannot be loaded.
    """
    try:
        return pipeline(model, device=device, **(settings or {}))
    except SpectralError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpectralError(
            "--model or --device",
            expected="a backbone and a device that can be loaded",
            got=f"{model or 'the default'} ({reason})",
            fix="Check the names; without the Hub, give a folder or install hf-spectral[offline]",
        ) from error
