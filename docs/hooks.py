"""What the site shows besides `pages/`, made when it is built: help texts, claims with their pictures, formulas."""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from hf_spectral.cli import build_parser

ROOT = Path(__file__).parent.parent
# Folders of the site, and what of the repository they show.
SHOWN = {"claims": "tests/benchmarks/*.md", "claims/images": "tests/benchmarks/images/*.png"}
SHOWN |= {"images": "model_cards/images/*.png", "images/basis": "model_cards/basis-what/images/*.png"}
COMMANDS = "<!-- commands -->"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that lie elsewhere in the repository."""
    for folder, pattern in SHOWN.items():
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, f"{folder}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Put the help texts in the place of their mark."""
    return markdown.replace(COMMANDS, help_texts()) if COMMANDS in markdown else markdown


def on_page_content(content: str, **context: Any) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""
    shown = {"div": "block", "span": "inline"}
    return FORMULA.sub(lambda found: convert(html.unescape(found[2]), display=shown[found[1]]), content)


def help_texts() -> str:
    """Return what `--help` says of each command, as Markdown."""
    parser = build_parser()
    choices = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return "\n".join(f"## {name}\n\n```text\n{command.format_help()}```\n" for name, command in choices.items())


class Examples(griffe.Extension):
    """Read `Example:`, as Google's style guide calls it, as griffe reads `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **context: Any) -> None:
        """Rename the section of one docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
