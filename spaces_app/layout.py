"""The components of the page and their arrangement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from spaces_app import style, views
from spaces_app.pictures import upload
from spaces_app.settings import DEFAULT_RESOLUTION, NUM_EIGENVECTORS, NUM_SEGMENTS, RESOLUTIONS

SHOWN_PATHWAYS = ("where", "what")


@dataclasses.dataclass(frozen=True)
class Form:
    """Components of the form."""

    picture: gr.Image
    gallery: gr.Gallery
    go: gr.Button
    status: gr.HTML
    settings: tuple[Any, ...]
    basis: gr.Textbox
    load_basis: gr.Button
    about_basis: gr.Markdown
    model: gr.Dropdown


@dataclasses.dataclass(frozen=True)
class Column:
    """Components of one pathway.

    Args:
        boxes: Columns that are hidden with the pathway.
        filled: Components that an analysis fills, in the order of `interface.Demo.analyze`.
        lit: Components that a click fills: their column, the affinity over all layers, and that of each layer.
    """

    boxes: list[gr.Column] = dataclasses.field(default_factory=list)
    filled: list[Any] = dataclasses.field(default_factory=list)
    lit: list[Any] = dataclasses.field(default_factory=list)

    @property
    def results(self) -> list[Any]:
        """All components that an analysis changes."""
        return [*self.boxes, *self.filled, self.lit[0]]


@dataclasses.dataclass(frozen=True)
class Results:
    """Components that show results."""

    tabs: gr.Tabs
    clicks: gr.HTML
    photo: gr.Image
    code: gr.Code
    columns: dict[str, Column]


def build_form(
    pictures: Mapping[str, Image.Image], backbones: Mapping[str, str], model: str | None, basis: str | None
) -> Form:
    """Lay out the form.

    Args:
        pictures: Examples, by name.
        backbones: Repositories to choose from, by what the list says; "" is the default backbone.
        model: The owner's default backbone, or None.
        basis: The owner's basis, or None.

    Returns:
        Its components.
    """
    picture = upload()
    gallery = gr.Gallery(
        [(image, name) for name, image in pictures.items()], columns=3, height="auto", object_fit="cover",
        allow_preview=False, show_label=False, buttons=[], interactive=False, elem_id="examples", format="jpeg",
    )  # fmt: skip
    pathway = gr.Radio(
        [("Both", "both"), ("Where", "where"), ("What", "what")], value="both", label="Pathway", elem_id="pathway"
    )
    go = gr.Button("Analyze", variant="primary", elem_id="go")
    status = gr.HTML("", padding=False, elem_id="status", elem_classes="status")
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        backbone, *numbers = _settings(backbones, model, has_basis=basis is not None)
    with gr.Accordion("Colors of a whole dataset", open=basis is not None, elem_id="dataset"):
        name = gr.Textbox(
            value=basis or "",
            label="Basis",
            info="A repository that hf-spectral has written; then a color means the same in every picture",
            placeholder="user/name",
            elem_id="basis",
        )
        load = gr.Button("Load", size="sm", elem_id="load-basis")
        about = gr.Markdown("", elem_classes="help", elem_id="about-basis")
    settings = (backbone, pathway, *numbers, name)
    return Form(picture, gallery, go, status, settings, name, load, about, backbone)


def build_results() -> Results:
    """Lay out the results, each pathway a column; on a phone one below the other.

    Returns:
        Its components.
    """
    columns = {name: Column() for name in SHOWN_PATHWAYS}
    with gr.Tabs(elem_id="tabs") as tabs:
        with gr.Tab("Overview", id="overview"):
            clicks = gr.HTML(style.OVERVIEW_HELP, js_on_load=style.CLICKS, padding=False, elem_classes="help")
            _beside(columns, _overview)
        with gr.Tab("Eigenvectors", id="eigenvectors"):
            gr.Markdown(style.EIGENVECTORS_HELP, elem_classes="help")
            _beside(columns, _eigenvectors)
        with gr.Tab("Ask a patch", id="affinity"):
            with gr.Row():
                with gr.Column(min_width=280):
                    photo = gr.Image(
                        type="filepath", format="png", interactive=False, show_label=False, container=False, buttons=[],
                        elem_id="affinity-photo",
                    )  # fmt: skip
                with gr.Column(min_width=280):
                    gr.Markdown(style.AFFINITY_HELP, elem_classes="help")
            with gr.Row():
                for name in SHOWN_PATHWAYS:
                    with gr.Column(min_width=280, visible=False) as box:
                        gr.HTML(style.heading(name), padding=False)
                        columns[name].lit.extend((box, *_affinity(name)))
        with gr.Tab("Save", id="downloads"):
            _beside(columns, _downloads)
            code = gr.Code(language="python", label="The same in Python", interactive=False, elem_id="code")
    return Results(tabs, clicks, photo, code, columns)


def _beside(columns: dict[str, Column], build: Callable[[str], list[Any]]) -> None:
    with gr.Row():
        for name, column in columns.items():
            with gr.Column(min_width=280) as box:
                gr.HTML(style.heading(name), padding=False)
                column.filled.extend(build(name))
            column.boxes.append(box)


def _settings(backbones: Mapping[str, str], model: str | None, has_basis: bool) -> tuple[Any, ...]:
    if model is not None:
        backbones = {f"{Path(model).name} (default)": "", **{label: name for label, name in backbones.items() if name}}
    return (
        gr.Dropdown(
            list(backbones.items()),
            value=next(iter(backbones.values())),
            label="Backbone",
            info="Or write the name of any vision transformer on the Hub",
            allow_custom_value=True,
            elem_id="model",
        ),
        gr.Slider(*NUM_EIGENVECTORS, value=12, step=1, label="Eigenvectors", elem_id="count"),
        gr.Dropdown(
            ["auto", 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32],
            value="auto",
            label="Segments",
            info="auto: found from the picture",
            elem_id="segments",
        ),
        gr.Dropdown(
            [("auto", "auto"), ("the backbone's own", ""), *[(f"{side} pixels", side) for side in RESOLUTIONS]],
            value="" if has_basis else "auto",
            label="Resolution",
            info=f"Longer side; auto: {DEFAULT_RESOLUTION} where the backbone reads it. More pixels show more",
            elem_id="resolution",
        ),
    )


def _overview(name: str) -> list[Any]:
    slider = gr.ImageSlider(
        format="png", show_label=False, interactive=False, buttons=["fullscreen"], elem_id=f"{name}-colors",
        slider_position=18, max_height=460,
    )  # fmt: skip
    count = gr.Slider(*NUM_SEGMENTS, step=1, label="Segments, coarse to fine", elem_id=f"{name}-cut")
    annotated = gr.AnnotatedImage(
        format="png", show_label=False, color_map=views.segment_names(), elem_id=f"{name}-segments", buttons=[]
    )
    return [slider, annotated, count, gr.State()]


def _eigenvectors(name: str) -> list[Any]:
    return [_tiles(f"{name}-eigenvectors", columns=2, buttons=["fullscreen"])]


def _affinity(name: str) -> list[Any]:
    joint = gr.Image(
        format="png", interactive=False, label="all layers together", elem_id=f"{name}-affinity", buttons=[]
    )
    return [joint, _tiles(f"{name}-layers", columns=3, buttons=[])]


def _tiles(elem_id: str, **options: Any) -> gr.Gallery:
    return gr.Gallery(
        format="png", show_label=False, interactive=False, object_fit="contain", height="auto", elem_classes="tiles",
        elem_id=elem_id, **options,
    )  # fmt: skip


def _downloads(name: str) -> list[Any]:
    labels = {"result": "Result (safetensors)", "labels": "Segments (PNG)", "sheet": "Eigenvectors (PNG)"}
    return [gr.DownloadButton(label, elem_id=f"{name}-{key}", size="md") for key, label in labels.items()]
