"""The page, and how it is served."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from hf_spectral import NotConvergedError, SpectralError
from spaces_app import style, views
from spaces_app.engine import Engine
from spaces_app.pictures import examples, open_picture, upload
from spaces_app.settings import BACKBONES, DEFAULT_RESOLUTION, NUM_EIGENVECTORS, RESOLUTIONS, Settings, settings_of

#: Visitors who wait at most; whoever comes then is told to come back.
QUEUE_SIZE = 32
MAX_UPLOAD = "20mb"
# Seconds between two rounds that delete files of pictures, and the age at which they go.
_DELETE_EVERY, _DELETE_AFTER = 600, 3600
# Sessions whose settings are remembered.
_SESSIONS = 256
_PATHWAYS = ("where", "what")
# Scrolls to the results where they lie below the form.
_SCROLL = "() => { if (innerWidth < 900) document.querySelector('#results')?.scrollIntoView({behavior: 'smooth'}); }"


@contextlib.contextmanager
def friendly() -> Iterator[None]:
    """Show a visitor's mistake as one sentence."""
    try:
        yield
    except (SpectralError, NotConvergedError) as error:
        raise gr.Error(str(error), duration=15, title="That did not work", print_exception=False) from error


@dataclasses.dataclass(frozen=True)
class _Column:
    """What one pathway fills."""

    boxes: tuple[gr.Column, ...]
    colors: gr.ImageSlider
    segments: gr.AnnotatedImage
    eigenvectors: gr.Gallery
    files: tuple[gr.DownloadButton, ...]
    affinity_box: gr.Column
    affinity: gr.Image
    layers: gr.Gallery

    @property
    def results(self) -> list[Any]:
        return [*self.boxes, self.colors, self.segments, self.eigenvectors, *self.files, self.affinity_box]

    @property
    def lit(self) -> list[Any]:
        return [self.affinity_box, self.affinity, self.layers]


class Demo:
    """The app.

    Args:
        model: Default backbone: repository or folder; None takes that of `hf_spectral.pipeline`.
        basis: Basis to start with: repository or folder; None starts with each picture's own eigenvectors.
        allow_folders: True lets visitors name folders of this machine: for an app that none but its owner can reach.
    """

    def __init__(self, model: str | None = None, basis: str | None = None, allow_folders: bool = False) -> None:
        self._engine = Engine(model, basis, allow_folders)
        self._examples = examples()
        self._model, self._basis = model, basis
        with gr.Blocks(
            title="Spectral pathways", analytics_enabled=False, delete_cache=(_DELETE_EVERY, _DELETE_AFTER)
        ) as self.blocks:
            self._build()
        self.blocks.queue(max_size=QUEUE_SIZE, default_concurrency_limit=1)

    def launch(self, **options: Any) -> Any:
        """Serve the page: nothing of this machine but the page and its own pictures.

        Args:
            **options: Of `gradio.Blocks.launch`, such as `server_port` and `share`.

        Returns:
            What it returns.

        Raises:
            SpectralError: If the default backbone or the basis cannot be loaded: better told now than to a visitor.
        """
        self._engine.warm_up(self._basis)
        return self.blocks.launch(
            theme=style.theme(),
            css_paths=style.CSS,
            max_file_size=MAX_UPLOAD,
            max_threads=8,
            state_session_capacity=_SESSIONS,
            show_error=False,
            enable_monitoring=False,
            footer_links=["api"],
            quiet=True,
            **options,
        )

    def analyze(
        self,
        picture: str | None,
        model: str,
        pathway: str,
        num_eigenvectors: int,
        num_segments: int | str,
        resolution: int | str,
        basis: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio finds it by its default.
    ) -> Iterator[list[Any]]:
        """Analyze a picture.

        Args:
            picture: Its file.
            model: See `Settings`, as are all others.
            pathway: See `Settings`.
            num_eigenvectors: See `Settings`.
            num_segments: See `Settings`.
            resolution: See `Settings`.
            basis: See `Settings`.
            progress: Gradio's.

        Yields:
            Once: a value for each of the components that `_outputs` lists. The files among them are gone afterwards;
            gradio has copied them by then.
        """
        with friendly(), tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            settings = settings_of(model, basis, pathway, num_eigenvectors, num_segments, resolution)
            progress(0.05, "Reading the picture")
            image = open_picture(picture)
            progress(0.15, "Running the backbone, solving over all its layers")
            found = self._engine.analyze(image, settings)
            progress(0.75, "Drawing")
            loaded = self._engine.basis(settings.basis) if settings.basis else None
            one = next(iter(found.values()))
            status = (
                f"{one['grid'][0]} by {one['grid'][1]} patches · {len(one['layers'])} layers · "
                f"{time.perf_counter() - start:.1f} s"
            )
            values: list[Any] = [gr.update(visible=True), gr.update(visible=False), status, settings, image]
            for name in _PATHWAYS:
                column = self._columns[name]
                values += [gr.update(visible=name in found)] * len(column.boxes)
                if name in found:
                    values += [
                        (image, views.colors(image, found[name], loaded)),
                        views.masks(image, found[name]),
                        views.tiles(image, found[name], loaded, settings.num_eigenvectors),
                        *views.write_downloads(image, found[name], name, Path(folder)),
                    ]
                else:
                    values += [None] * (3 + len(column.files))
                values.append(gr.update(visible=False))
            yield [*values, views.code(settings)]

    def affinity(self, picture: str | None, settings: Settings | None, event: gr.SelectData) -> list[Any]:
        """Light up what a patch is related to.

        Args:
            picture: The file of the analyzed picture.
            settings: Those it was analyzed with.
            event: Where it was clicked.

        Returns:
            For each pathway whether it is shown, the picture of all layers together, and those of each layer.
        """
        with friendly():
            return self.affinity_at(picture, settings, tuple(event.index))

    def affinity_at(self, picture: str | None, settings: Settings | None, place: tuple[int, ...]) -> list[Any]:
        """Light up what a patch is related to.

        Args:
            picture: The file of the analyzed picture.
            settings: Those it was analyzed with.
            place: Pixels from the left and from the top.

        Returns:
            For each pathway whether it is shown, the picture of all layers together, and those of each layer.

        Raises:
            SpectralError: If no picture has been analyzed.
        """
        if settings is None:
            raise SpectralError("picture", expected="an analyzed picture", got="none", fix="Press Analyze first")
        image = open_picture(picture)
        found = self._engine.affinity(image, settings, (place[1] / image.height, place[0] / image.width))
        values: list[Any] = []
        for name in _PATHWAYS:
            values.append(gr.update(visible=name in found))
            values += views.spotlights(image, found[name]) if name in found else [None, None]
        return values

    def describe_basis(self, basis: str, model: str) -> tuple[str, Any]:
        """Load a basis and say what it is.

        Args:
            basis: Its repository, or its folder.
            model: The backbone chosen so far.

        Returns:
            A sentence, and the backbone that the basis needs, if that has a repository.
        """
        if not (basis or "").strip():
            return "Colors are each picture's own.", gr.update()
        with friendly():
            loaded = self._engine.basis(basis.strip())
            backbone = str(loaded.backbone.get("id") or "")
            text = (
                f"**{loaded.config.pathway}** basis of {loaded.num_images:,} pictures, {len(loaded.eigenvalues)} "
                f"eigenvectors, fitted on {backbone or 'an unnamed backbone'}. "
                "The same color now means the same thing in every picture."
            )
            return text, backbone if "/" in backbone and backbone != model else gr.update()

    def _build(self) -> None:
        gr.HTML(style.HERO, padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                form = self._build_form()
            with gr.Column(scale=9, min_width=320, elem_id="results"):
                empty = gr.HTML(style.EMPTY, padding=False)
                with gr.Column(visible=False) as results:
                    photo, code = self._build_results()
        gr.HTML(style.FOOTER, padding=False)
        settings = gr.State()
        picture, gallery, go, status, inputs = form
        outputs = [results, empty, status, settings, photo]
        outputs += [part for name in _PATHWAYS for part in self._columns[name].results] + [code]
        listener: dict[str, Any] = {
            "fn": self.analyze,
            "inputs": [picture, *inputs],
            "outputs": outputs,
            "concurrency_id": "backbone",
            "show_progress_on": status,
            "trigger_mode": "once",
        }
        go.click(None, js=_SCROLL, api_visibility="private")
        go.click(**listener, api_name="analyze")
        chosen = gallery.select(self._pick, outputs=picture, api_visibility="private", show_progress="hidden")
        chosen.then(None, js=_SCROLL, api_visibility="private")
        chosen.then(**listener, api_visibility="private")
        picture.upload(**listener, api_visibility="private")
        photo.select(
            self.affinity,
            [photo, settings],
            [part for name in _PATHWAYS for part in self._columns[name].lit],
            concurrency_id="backbone",
            show_progress_on=photo,
            trigger_mode="always_last",
            api_visibility="private",
        )

    def _build_form(self) -> tuple[Any, ...]:
        picture = upload()
        gallery = gr.Gallery(
            [(image, name) for name, image in self._examples.items()],
            columns=3,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            show_label=False,
            buttons=[],
            interactive=False,
            elem_id="examples",
            format="jpeg",
        )
        pathway = gr.Radio(
            [("Both", "both"), ("Where", "where"), ("What", "what")], value="both", label="Pathway", elem_id="pathway"
        )
        go = gr.Button("Analyze", variant="primary", elem_id="go")
        status = gr.HTML("", padding=False, elem_id="status", elem_classes="status")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            default = BACKBONES if self._model is None else {f"{Path(self._model).name} (default)": "", **BACKBONES}
            names = {label: name for label, name in default.items() if name or label == next(iter(default))}
            model = gr.Dropdown(
                list(names.items()),
                value="",
                label="Backbone",
                info="Or write the name of any vision transformer on the Hub",
                allow_custom_value=True,
                elem_id="model",
            )
            num_eigenvectors = gr.Slider(*NUM_EIGENVECTORS, value=12, step=1, label="Eigenvectors", elem_id="count")
            num_segments = gr.Dropdown(
                ["auto", 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32],
                value="auto",
                label="Segments",
                info="auto: found from the picture",
                elem_id="segments",
            )
            resolution = gr.Dropdown(
                [("the backbone's own", ""), *[(f"{side} pixels", side) for side in RESOLUTIONS]],
                value="" if self._basis else DEFAULT_RESOLUTION,
                label="Resolution",
                info="Longer side; more pixels, finer maps, more time",
                elem_id="resolution",
            )
        with gr.Accordion("Colors of a whole dataset", open=self._basis is not None, elem_id="dataset"):
            basis = gr.Textbox(
                value=self._basis or "",
                label="Basis",
                info="A repository that hf-spectral has written; then a color means the same in every picture",
                placeholder="user/name",
                elem_id="basis",
            )
            load = gr.Button("Load", size="sm", elem_id="load-basis")
            about = gr.Markdown("", elem_classes="help", elem_id="about-basis")
            for trigger in (load.click, basis.submit):
                trigger(
                    self.describe_basis,
                    [basis, model],
                    [about, model],
                    concurrency_id="backbone",
                    api_visibility="private",
                )
        return picture, gallery, go, status, [model, pathway, num_eigenvectors, num_segments, resolution, basis]

    def _build_results(self) -> tuple[gr.Image, gr.Code]:
        parts: dict[str, dict[str, Any]] = {name: {"boxes": []} for name in _PATHWAYS}

        def beside(build: Any, visible: bool = True) -> None:
            with gr.Row():
                for name in _PATHWAYS:
                    with gr.Column(min_width=280, visible=visible) as box:
                        gr.HTML(style.heading(name), padding=False)
                        parts[name] |= build(name)
                    if visible:
                        parts[name]["boxes"].append(box)
                    else:
                        parts[name]["affinity_box"] = box

        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Overview", id="overview"):
                beside(lambda name: _colors(name) | _segments(name))
            with gr.Tab("Eigenvectors", id="eigenvectors"):
                gr.Markdown(style.EIGENVECTORS_HELP, elem_classes="help")
                beside(_eigenvectors)
            with gr.Tab("Ask a patch", id="affinity"):
                gr.Markdown(style.AFFINITY_HELP, elem_classes="help")
                photo = gr.Image(
                    type="filepath",
                    format="png",
                    interactive=False,
                    show_label=False,
                    container=False,
                    buttons=[],
                    elem_id="affinity-photo",
                )
                beside(_affinity, visible=False)
            with gr.Tab("Save", id="downloads"):
                beside(_downloads)
                code = gr.Code(language="python", label="The same in Python", interactive=False, elem_id="code")
        self._columns = {name: _Column(**{**part, "boxes": tuple(part["boxes"])}) for name, part in parts.items()}
        return photo, code

    def _pick(self, event: gr.SelectData) -> Any:
        name = list(self._examples)[int(event.index)]
        return self._examples[name]


def _colors(name: str) -> dict[str, Any]:
    slider = gr.ImageSlider(
        format="png", show_label=False, interactive=False, buttons=["fullscreen"], elem_id=f"{name}-colors",
        slider_position=18, max_height=460,
    )  # fmt: skip
    return {"colors": slider}


def _segments(name: str) -> dict[str, Any]:
    annotated = gr.AnnotatedImage(
        format="png", show_label=False, color_map=views.segment_names(), elem_id=f"{name}-segments", buttons=[]
    )
    return {"segments": annotated}


def _eigenvectors(name: str) -> dict[str, Any]:
    gallery = gr.Gallery(
        format="png", columns=2, show_label=False, interactive=False, object_fit="contain", height="auto",
        elem_id=f"{name}-eigenvectors", elem_classes="tiles", buttons=["fullscreen"],
    )  # fmt: skip
    return {"eigenvectors": gallery}


def _affinity(name: str) -> dict[str, Any]:
    joint = gr.Image(
        format="png", interactive=False, label="all layers together", elem_id=f"{name}-affinity", buttons=[]
    )
    layers = gr.Gallery(
        format="png", columns=3, show_label=False, interactive=False, object_fit="contain", height="auto",
        elem_id=f"{name}-layers", elem_classes="tiles", buttons=[],
    )  # fmt: skip
    return {"affinity": joint, "layers": layers}


def _downloads(name: str) -> dict[str, Any]:
    labels = {"result": "Result (safetensors)", "labels": "Segments (PNG)", "sheet": "Eigenvectors (PNG)"}
    buttons = [gr.DownloadButton(label, elem_id=f"{name}-{key}", size="md") for key, label in labels.items()]
    return {"files": tuple(buttons)}
