"""Type, color and space: the palette is that of the package's figures."""

from __future__ import annotations

import gradio as gr

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
            "ui-sans-serif", "system-ui",
            "sans-serif",
        ),
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", (400,)), "ui-monospace", "monospace"),
    ).set(
        body_background_fill=PAPER,
        body_text_color=INK,
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
  <p class="lead">A frozen vision network knows more about a picture than it says. Its attention layers, read all at once,
  tell two things apart.</p>
  <div class="cards">
    <div class="card where"><b>Where</b> Queries meet keys: patches group by <em>place</em>, and the colors follow the layout
    of the scene.</div>
    <div class="card what"><b>What</b> Values meet values: patches group by <em>identity</em>, and the colors follow the things
    themselves.</div>
  </div>
</header>
"""
EMPTY = """
<div class="empty"><svg viewBox="0 0 120 80" width="120" height="80" aria-hidden="true">
<g fill="none" stroke-width="3" stroke-linecap="round"><path d="M8 62 C30 20 52 20 60 40 S92 62 112 18" stroke="#1877a1"/>
<path d="M8 30 C28 66 46 62 60 40 S88 14 112 56" stroke="#cd5c2a"/></g></svg>
<p>Tap one of the pictures, or bring your own.</p></div>
"""
FOOTER = """
<footer class="foot">Method: <a href="https://arxiv.org/abs/2312.06716" target="_blank" rel="noopener">Zhang, Yunis and Maire,
CVPR 2024</a>. Uploads are deleted within two hours. Pictures: danielbuechele and vultilion (CC BY 2.0), NASA, SpaceX, CC0.</footer>
"""
AFFINITY_HELP = (
    "Click anywhere on the picture: what that patch is related to lights up, by all layers together and, below, by each. "
    "A ring marks the patch."
)
EIGENVECTORS_HELP = (
    "Blue and red are the two sides of an eigenvector. **λ** is its eigenvalue: the smaller, the more layers agree on it. "
    "**layout** is the share of it that a smooth function of position explains in this picture, the one-picture stand-in "
    "for the where-score of a dataset."
)


def heading(pathway: str) -> str:
    """Return the heading of a pathway's column."""
    words = {"where": "queries and keys: the layout", "what": "values: the things"}
    return f'<h3 class="pathway {pathway}"><b>{pathway}</b><span>{words[pathway]}</span></h3>'


CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important;}
.gradio-container .main {padding: 0 20px !important; min-width: 0;}
.hero, .empty, .pathway, .foot, .status {font-family: var(--font);}
.hero {padding: 26px 0 8px;}
.hero h1 {font: 700 clamp(2rem, 5vw, 3rem)/1.05 var(--font); letter-spacing: -0.035em; margin: 0 0 10px;
  color: var(--body-text-color);}
.hero h1 .where {color: #1877a1;} .hero h1 .what {color: #cd5c2a;}
.hero .lead {font-size: clamp(1rem, 1.6vw, 1.15rem); line-height: 1.5; color: var(--neutral-600); max-width: 46em;
  margin: 0 0 16px;}
.hero .cards {display: grid; grid-template-columns: 1fr 1fr; gap: 12px 24px; max-width: 880px;}
.hero .card {font-size: 0.92rem; line-height: 1.45; color: var(--neutral-700); padding: 1px 0 1px 14px; border-left: 3px solid;}
.hero .card b {display: block; font-size: 1rem; margin-bottom: 1px;}
.hero .card.where {border-color: #1877a1;} .hero .card.what {border-color: #cd5c2a;}
.hero .card.where b, .pathway.where b {color: #1877a1;} .hero .card.what b, .pathway.what b {color: #b94f21;}
.dark .hero .lead, .dark .hero .card, .dark .foot, .dark .help p, .dark .pathway span, .dark .status {color: var(--neutral-300);}
.dark .hero .card.where b, .dark .pathway.where b {color: #7fb9d4;}
.dark .hero .card.what b, .dark .pathway.what b {color: #ef9b72;}
.pathway {display: flex; align-items: baseline; gap: 9px; margin: 0; font-size: 1.05rem; font-weight: 400;}
.pathway b {text-transform: capitalize;}
.pathway span {color: var(--neutral-500); font-size: 0.86rem;}
.empty {display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 14px; min-height: 430px;
  border: 1px dashed var(--neutral-300); border-radius: 14px; color: var(--neutral-500);}
.empty p {margin: 0; font-size: 1.02rem; color: inherit;}
.foot {color: var(--neutral-500); font-size: 0.82rem; padding: 14px 0 4px; line-height: 1.5;}
.foot a {color: #1877a1; margin: 0; padding: 0; display: inline;} .dark .foot a {color: #7fb9d4;}
.status {min-height: 26px; color: var(--neutral-600); font-size: 0.86rem;}
.help p {font-size: 0.9rem !important; line-height: 1.5; color: var(--neutral-600); max-width: 56em;}
#go {min-height: 46px;}

#examples, .tiles {border: 0 !important; background: transparent !important; overflow: visible !important;}
#examples .grid-wrap, .tiles .grid-wrap {min-height: 0 !important; max-height: none !important; height: auto !important;
  padding: 0 !important; overflow: visible !important;}
#examples .gallery-container, .tiles .gallery-container {height: auto !important;}
#examples .grid-container {gap: 8px !important; padding: 0 !important;}
#examples .caption-label {display: none;}
#examples .thumbnail-lg {border-radius: 10px; transition: transform .15s ease, box-shadow .15s ease;}
#examples .thumbnail-lg:hover {transform: translateY(-2px); box-shadow: 0 6px 18px #282c3430;}
.tiles .grid-container {gap: 10px !important; padding: 0 !important; align-items: start;}
.tiles .gallery-item, .tiles .thumbnail-lg {height: auto !important; aspect-ratio: auto !important;}
.tiles .thumbnail-lg {display: block; width: 100%; border: 0; background: transparent; border-radius: 8px; overflow: hidden;}
.tiles .thumbnail-lg img {width: 100% !important; height: auto !important; display: block; border-radius: 8px;}
.tiles .caption-label {position: static !important; max-width: none !important; border: 0 !important; text-align: left;
  background: transparent !important; padding: 4px 2px 2px !important; font-size: 0.74rem !important; white-space: normal;
  color: var(--neutral-600);}
.dark .tiles .caption-label {color: var(--neutral-300);}
#affinity-photo {border: 0 !important; background: transparent !important; width: fit-content; max-width: 100%;}
#affinity-photo img {cursor: crosshair; border-radius: 12px; max-height: 420px; width: auto; max-width: 100%; height: auto;}
#affinity-photo button, #affinity-photo .image-frame {width: auto !important; height: auto !important;}

@media (max-width: 640px) {
  .gradio-container .main {padding: 0 14px !important;}
  .hero {padding-top: 18px;} .hero .cards {grid-template-columns: 1fr;}
  .empty {min-height: 170px;}
  #tabs .tab-container button {padding: 0 9px !important; font-size: 0.86rem;}
}
"""
