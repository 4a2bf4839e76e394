"""`hf-spectral push` and `hf-spectral space`: what was made goes to the Hub. The token is that of `hf auth login`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from PIL import Image

from hf_spectral.basis import SpectralBasis
from hf_spectral.cli.common import add_command, chosen, load
from hf_spectral.errors import SpectralError
from hf_spectral.hub_download import located, require_repository
from hf_spectral.pipelines import SpectralPathwaysPipeline
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.saved import SHIM_NAME
from hf_spectral.report import LayerReport
from hf_spectral.result import RESULT_NAME, SpectralResult
from hf_spectral.tensor_files import undamaged

_ACCEPTED = (
    "what fit, transform or analyze has written (the folder of a basis or of rows, or a result's file), "
    "or the folder of a saved pipeline"
)


def add_parsers(commands: Any) -> None:
    """Add `push` and `space` to the subparsers of the program."""
    push = add_command(commands, "push", _push, "push a basis, rows, a result or a pipeline to the Hub")
    push.add_argument("path", type=Path, metavar="PATH", help=_ACCEPTED)
    push.add_argument("repo_id", metavar="REPO", help="user/name")
    push.add_argument("--basis", metavar="DIR", help="of rows: the basis that made them; default: the one beside them")
    push.add_argument("--example", metavar="PHOTO", help="of a basis: a photo for its card, seen by everybody")
    push.add_argument("--report", metavar="CSV", help="of a basis: the table that report has written, for its card")
    push.add_argument("--model", help="backbone that reads the example; default: as the basis names it")
    push.add_argument("--dataset", metavar="ID", help="dataset on the Hub that the pictures come from")
    push.add_argument("--base-model", metavar="ID", help="backbone on the Hub; default: as the basis names it")
    text = "as the Hub spells it, such as cc-by-4.0; default: the backbone's; for rows that of --dataset; or unknown"
    push.add_argument("--license", metavar="NAME", help=text)
    push.add_argument("--revision", metavar="BRANCH", help="default: main")
    push.add_argument("--create-pr", action="store_true", help="propose it as a pull request")

    space = add_command(commands, "space", _space, "create or update a Space that shows the app")
    space.add_argument("repo_id", metavar="REPO", help="user/name")
    space.add_argument("--basis", metavar="REPO", help="basis on the Hub that the app starts with; default: none")
    space.add_argument("--hardware", metavar="NAME", help="such as t4-small or zero-a10g; default: as it is")
    said = "NAME=VALUE, or a NAME whose value is in the environment here; repeatable"
    named: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME[=VALUE]"}
    space.add_argument("--secrets", **named, help=f"{said}; the Hub shows no secret again")
    space.add_argument("--variables", **named, help=said)
    space.add_argument("--requirement", metavar="LINE", help="installs hf-spectral there; default: this very version")
    for parser in (push, space):
        parser.add_argument("--private", action="store_true", default=None, help="hide a new repository")
        parser.add_argument("--message", dest="commit_message", metavar="MESSAGE", help="commit message")


def _push(options: argparse.Namespace) -> None:
    """Push what lies at a path, and say where it is."""
    from hf_spectral.hub import CardDetails, push_to_hub

    require_repository(options.repo_id, "REPO")  # Before the backbone runs.
    thing = _read(options.path)
    details = chosen(options, CardDetails)
    if options.example is not None and isinstance(thing, SpectralBasis):
        details["examples"] = (_example(options, thing),)
    if options.report is not None:
        details["report"] = LayerReport.from_pretrained(options.report)
    settings = chosen(options, push_to_hub)
    if options.basis is not None:
        settings["basis"] = SpectralBasis.from_pretrained(options.basis)
    info = push_to_hub(thing, **settings, details=CardDetails(**details))
    print(info.pr_url or info.commit_url)


def _example(options: argparse.Namespace, basis: SpectralBasis) -> tuple[Image.Image, SpectralResult]:
    options.model = options.model or str(options.path)
    photo, pipe = read_image(options.example), load(options)
    if not isinstance(pipe, SpectralPathwaysPipeline):
        raise SpectralError(
            "--example", expected="a basis of a transformers backbone", got="a diffusion model", fix="Leave it out"
        )
    return photo, pipe(photo, basis=basis, num_segments=None, return_result=True)["result"]


def _space(options: argparse.Namespace) -> None:
    """Push the app, and say where it is."""
    from hf_spectral.hub import push_space

    settings = chosen(options, push_space)
    for argument in ("secrets", "variables"):
        said = [word.partition("=") for word in settings[argument]]
        if missing := [name for name, equals, _ in said if not equals and name not in os.environ]:
            raise SpectralError(
                f"--{argument}",
                expected="NAME=VALUE, or the name of a variable that is set here",
                got=f"{len(missing)} of other kinds",  # They may be values by mistake.
                fix="Set the variable, or write its value after '='",
            )
        settings[argument] = {name: value if equals else os.environ[name] for name, equals, value in said}
    print(push_space(**settings).commit_url)


def _read(path: Path) -> Any:
    located(path, (), "PATH")
    if (path / "basis.safetensors").is_file():
        return SpectralBasis.from_pretrained(path)
    if (path / SHIM_NAME).is_file():
        return load(argparse.Namespace(model=str(path), device="cpu"))
    if (path / "state.json").is_file():
        import datasets

        with undamaged("PATH", path, _ACCEPTED, "Make it again by `transform`"):
            return datasets.load_from_disk(path)
    if path.is_file() or (path / RESULT_NAME).is_file():
        return SpectralResult.from_pretrained(path)
    raise SpectralError("PATH", expected=_ACCEPTED, got=repr(str(path)), fix="Check the path")
