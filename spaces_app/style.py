"""Type, color and space: the palette is that of the package's figures."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

CSS = Path(__file__).parent / "style.css"

# Of hf_spectral.visualization: ink and muted text, the zero of the eigenvectors' colors as paper, the two pathways.
INK, MUTED, PAPER = "#282c34", "#6b7280", "#faf8f5"
WHERE, WHAT = "#1877a1", "#cd5c2a"

_BLUES = gr.themes.Color(
    name="where", c50="#eef6fa", c100="#d8eaf3", c200="#b1d5e6", c300="#7fb9d4", c400="#4798bd", c500=WHERE,
    c600="#146688", c700="#10526e", c800="#0d4158", c900="#0a2f40", c950="#071f2b",
)  # fmt: skip
_GRAYS = gr.themes.Color(
    name="ink", c50=PAPER, c100="#f3f0eb", c200="#e6e2db", c300="#d3cec5", c400="#a5a19a", c500="#78767a",
    c600="#5a5c64", c700="#42464f", c800=INK, c900="#1d2027", c950="#14161b",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """Return the theme: fonts that gradio itself serves, so that a page needs nothing from elsewhere."""
    return gr.themes.Base(
        primary_hue=_BLUES,
        secondary_hue=_BLUES,
        neutral_hue=_GRAYS,
        radius_size=gr.themes.sizes.radius_lg,
        font=(
            gr.themes.LocalFont("IBM Plex Sans", (400, 700)),
            "ui-sans-serif",
            "system-ui",
            "sans-serif",
        ),
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", (400,)), "ui-monospace", "monospace"),
    ).set(
        body_background_fill=PAPER,
        body_text_color=INK,
        body_text_color_subdued="#5a5c64",
        body_text_color_subdued_dark="#c4c0b9",
        block_background_fill="#ffffff",
        block_border_color="#e9e5de",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="#ffffffd9",
        block_label_text_color=MUTED,
        block_label_border_width="0px",
        block_title_text_weight="400",
        block_title_text_size="*text_sm",
        block_title_text_color=INK,
        input_background_fill="#fdfcfa",
        input_border_color="#e0dbd2",
        button_medium_text_weight="400",
        button_small_text_weight="400",
        button_primary_background_fill=INK,
        button_primary_background_fill_hover="#3d434e",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#f3f0eb",
        button_secondary_border_color="#e0dbd2",
        button_border_width="1px",
        button_primary_background_fill_dark=WHERE,
        button_primary_border_color_dark=WHERE,
        button_primary_border_color=INK,
        button_primary_border_color_hover="#3d434e",
        button_large_text_weight="700",
        slider_color=WHERE,
    )


HERO = """
<header class="hero">
  <h1><span class="where">Where</span>, and <span class="what">what</span></h1>
  <p class="lead">A frozen vision network knows more about a picture than it says. Its attention layers, read all at
  once, tell two things apart.</p>
  <div class="cards">
    <div class="card where"><b>Where</b> Queries meet keys: patches group by <em>place</em>, and the colors follow the
    layout of the scene.</div>
    <div class="card what"><b>What</b> Values meet values: patches group by <em>identity</em>, and the colors follow
    the things themselves.</div>
  </div>
</header>
"""
EMPTY = """
<div class="empty">
  <svg viewBox="0 0 120 80" width="120" height="80" aria-hidden="true">
    <g fill="none" stroke-width="3" stroke-linecap="round">
      <path d="M8 62 C30 20 52 20 60 40 S92 62 112 18" stroke="#1877a1"/>
      <path d="M8 30 C28 66 46 62 60 40 S88 14 112 56" stroke="#cd5c2a"/>
    </g>
  </svg>
  <p>Tap one of the pictures, or bring your own.</p>
</div>
"""
FOOTER = """
<footer class="foot">Method: <a href="https://arxiv.org/abs/2312.06716" target="_blank" rel="noopener">Zhang, Yunis and
Maire, CVPR 2024</a>. Uploads are deleted within two hours. Pictures: danielbuechele and vultilion (CC BY 2.0), NASA,
SpaceX, CC0.</footer>
"""
AFFINITY_HELP = (
    "Click anywhere on the picture: what that patch is related to lights up, by all layers together and, below, by "
    "each. A ring marks the patch."
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
