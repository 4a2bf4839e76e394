"""Type, color and space: the palette is that of the package's figures."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import gradio as gr

_FOLDER = Path(__file__).parent
CSS = _FOLDER / "style.css"
HERO, EMPTY, FOOTER = ((_FOLDER / "html" / f"{name}.html").read_text("utf-8") for name in ("hero", "empty", "footer"))


def hero(title: str, lead: str) -> str:
    """Return the head of the page.

    Args:
        title: Its title; the words "where" and "what" get the colors of the pathways.
        lead: The paragraph below it.

    Returns:
        HTML.
    """
    title = re.sub(
        r"\b(where|what)\b",
        lambda word: f'<span class="{word[0].lower()}">{word[0]}</span>',
        html.escape(title),
        flags=re.IGNORECASE,
    )
    return HERO.format(title=title, lead=html.escape(lead))


def theme() -> gr.themes.Base:
    """Return the theme: fonts that gradio itself serves, so that a page needs nothing from elsewhere."""
    design = json.loads((_FOLDER / "theme.json").read_text("utf-8"))
    blues, grays = (gr.themes.Color(*design[name], name=name) for name in ("where", "ink"))
    return gr.themes.Base(
        primary_hue=blues,
        secondary_hue=blues,
        neutral_hue=grays,
        radius_size=gr.themes.sizes.radius_lg,
        font=(gr.themes.LocalFont("IBM Plex Sans", (400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", (400,)), "ui-monospace", "monospace"),
    ).set(**design["variables"])


CLICKS = (_FOLDER / "clicks.js").read_text("utf-8")
OVERVIEW_HELP = "Drag a handle to compare with the photo. Click a place to ask what it is related to."
AFFINITY_HELP = (
    "Click anywhere on the picture, here or in the overview: what that patch is related to lights up below, by all "
    "layers together and by each. A ring marks the patch."
)
EIGENVECTORS_HELP = (
    "Blue and red are the two sides of an eigenvector. **λ** is its eigenvalue: the smaller, the more layers agree on "
    "it. **layout** is the share of it that a smooth function of position explains in this picture, the one-picture "
    "stand-in for the where-score of a dataset."
)


def heading(pathway: str) -> str:
    """Return the heading of a pathway's column."""
    words = {"where": "queries and keys: the layout", "what": "values: the things"}
    return f'<h3 class="pathway {pathway}"><b>{pathway}</b><span>{words[pathway]}</span></h3>'
