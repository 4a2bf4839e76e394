"""`hf-spectral demo`: the Space on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from hf_spectral.checks import require_extra
from hf_spectral.cli.common import add_command
from hf_spectral.errors import SpectralError


def add_parsers(commands: Any) -> None:
    """Add `demo` to the subparsers of the program."""
    demo = add_command(commands, "demo", _demo, "look at pictures in the browser", "--model")
    demo.add_argument("--basis", help="repository id or folder of a basis to start with (default: none)")
    demo.add_argument("--port", type=_port, help="default: the first free one from 7860 on")
    demo.add_argument("--share", action="store_true", help="make a public link, by gradio's servers (default: no)")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 65535, got {text!r}")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    """Serve the page until it is interrupted; visitors of a public link may not name folders of this machine."""
    require_extra("app", "gradio")
    from spaces_app.app import build

    page = build(options.model, options.basis, allow_folders=not options.share)
    try:
        page.launch(server_name="127.0.0.1", server_port=options.port, share=options.share)
    except OSError as error:
        raise SpectralError(
            "--port", expected="a free port", got=options.port or error, fix="Leave it out, or name another one"
        ) from error
