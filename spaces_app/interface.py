"""The behavior of the page, and its server."""

from __future__ import annotations

import html
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hf_spectral import Segmentation, SpectralError
from spaces_app import style, views
from spaces_app.engine import Engine
from spaces_app.hosting import friendly
from spaces_app.layout import SHOWN_PATHWAYS, Form, Results, build_form, build_results
from spaces_app.pictures import fitted, open_picture
from spaces_app.settings import Settings, settings_of

#: Longest queue of visitors; further ones are asked to come back.
QUEUE_SIZE = 32
MAX_UPLOAD = "20mb"
# Seconds between two deletions of picture files, and the age from which files are deleted.
_DELETE_EVERY, _DELETE_AFTER = 600, 3600
# Sessions whose settings are remembered.
_SESSIONS = 256
# Scrolls to the results where they lie below the form.
_SCROLL = "() => { if (innerWidth < 900) document.querySelector('#results')?.scrollIntoView({behavior: 'smooth'}); }"


def _recuttable(found: dict[str, Any]) -> list[Any]:
    """Return the number of segments for the slider, and their tree; clusters of a basis have none."""
    hierarchy = found.get("hierarchy")
    if hierarchy is None:
        return [gr.update(visible=False), None]
    return [gr.update(visible=True, value=max(2, hierarchy.num_segments)), hierarchy]


class Demo:
    """The app.

    Args:
        model: Default backbone: repository or folder; None takes that of `hf_spectral.pipeline`.
        basis: Basis to start with: repository or folder; None starts with each picture's own eigenvectors.
        allow_folders: True lets visitors name folders of this machine: for an app that none but its owner can reach.
        title: Title of the page.
        lead: A sentence or two below it.
        backbones: Repositories to choose from, by what the list says, the one to start with first; "" is the default.
        pictures: Examples by name, pictures or paths of files. Their results are kept, see `Engine`.
    """

    def __init__(
        self,
        model: str | None = None,
        basis: str | None = None,
        allow_folders: bool = False,
        *,
        title: str = "Where, and what",
        lead: str = "",
        backbones: Mapping[str, str] = MappingProxyType({"DINOv2 small (default)": ""}),
        pictures: Mapping[str, Image.Image | str] = MappingProxyType({}),
    ) -> None:
        self._examples = {
            name: fitted(one) if isinstance(one, Image.Image) else open_picture(one) for name, one in pictures.items()
        }
        self._engine = Engine(model, basis, allow_folders, frozenset(backbones.values()), self._examples.values())
        self._model, self._basis = model, basis
        self._head, self._backbones = style.hero(title, lead), backbones
        with gr.Blocks(
            title=title, analytics_enabled=False, delete_cache=(_DELETE_EVERY, _DELETE_AFTER)
        ) as self.blocks:
            self._build()
        self.blocks.queue(max_size=QUEUE_SIZE, default_concurrency_limit=1)

    def launch(self, **options: Any) -> Any:
        """Serve the page. No other file of this machine is served.

        Args:
            **options: Of `gradio.Blocks.launch`, such as `server_port` and `share`.

        Returns:
            What it returns.

        Raises:
            SpectralError: If the default backbone or the basis cannot be loaded.
        """
        first = "" if self._model else next(iter(self._backbones.values()))
        self._engine.warm_up(first, self._basis)
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
            Once: a value for each of the components that `_connect` lists. The files among them are gone afterwards;
            gradio has copied them by then.
        """
        with friendly(), tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            settings = settings_of(model, basis, pathway, num_eigenvectors, num_segments, resolution)
            progress(0.05, "Reading the picture")
            image = open_picture(picture)
            progress(0.15, "Running the backbone, solving over all its layers")
            settings = self._engine.resolved(settings)
            found = self._engine.analyze(image, settings)
            progress(0.75, "Drawing")
            loaded = self._engine.basis(settings.basis) if settings.basis else None
            one = next(iter(found.values()))
            parts = ["{} by {} patches".format(*one["grid"]), f"{len(one['layers'])} layers"]
            parts += [one["status"].replace("_", " "), f"{time.perf_counter() - start:.1f} s", *one["result"].notes]
            status = html.escape(" · ".join(parts))
            values: list[Any] = [gr.update(visible=True), gr.update(visible=False), status, settings, image]
            for name, column in self._columns.items():
                filled: list[Any] = [None] * len(column.filled)
                if name in found:
                    filled = [
                        (image, views.colors(image, found[name], loaded)),
                        views.masks(image, np.asarray(found[name]["segmentation"])),
                        *_recuttable(found[name]),
                        views.tiles(image, found[name], loaded, settings.num_eigenvectors),
                        *views.write_downloads(image, found[name], name, Path(folder)),
                    ]
                values += [*[gr.update(visible=name in found)] * len(column.boxes), *filled, gr.update(visible=False)]
            yield [*values, views.code(settings)]

    def recut(self, picture: str | None, hierarchy: Segmentation | None, num_segments: int) -> Any:
        """Show another number of segments of the tree that the analysis gave: nothing is solved again.

        Args:
            picture: The file of the analyzed picture.
            hierarchy: The segments of one pathway.
            num_segments: 2 to 32.

        Returns:
            The photo with its masks.

        Raises:
            SpectralError: If no picture has been analyzed.
        """
        with friendly():
            if hierarchy is None or hierarchy.tree is None:
                raise SpectralError("picture", expected="an analyzed picture", got="none", fix="Press Analyze first")
            most = len(hierarchy.tree.features)
            labels = np.asarray(hierarchy.at(min(int(num_segments), most)).to_image())
            return views.masks(open_picture(picture), labels)

    def affinity(self, picture: str | None, settings: Settings | None, event: gr.SelectData) -> list[Any]:
        """Show the affinities of a patch.

        Args:
            picture: The file of the analyzed picture.
            settings: Those it was analyzed with.
            event: Where it was clicked, in pixels from the left and from the top.

        Returns:
            For each pathway whether it is shown, the picture of all layers together, and those of each layer.

        Raises:
            SpectralError: If no picture has been analyzed.
        """
        with friendly():
            if settings is None:
                raise SpectralError("picture", expected="an analyzed picture", got="none", fix="Press Analyze first")
            image = open_picture(picture)
            left, top = event.index
            found = self._engine.affinity(image, settings, (top / image.height, left / image.width))
            values: list[Any] = []
            for name in SHOWN_PATHWAYS:
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
        gr.HTML(self._head, padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                form = build_form(self._examples, self._backbones, self._model, self._basis)
            with gr.Column(scale=9, min_width=320, elem_id="results"):
                empty = gr.HTML(style.EMPTY, padding=False)
                with gr.Column(visible=False) as box:
                    results = build_results()
        gr.HTML(style.FOOTER, padding=False)
        self._columns = results.columns
        self._connect(form, results, [box, empty])

    def _connect(self, form: Form, results: Results, boxes: list[Any]) -> None:
        settings = gr.State()
        columns = [part for column in self._columns.values() for part in column.results]
        analysis: dict[str, Any] = {
            "fn": self.analyze,
            "inputs": [form.picture, *form.settings],
            "outputs": [*boxes, form.status, settings, results.photo, *columns, results.code],
            "concurrency_id": "backbone",
            "show_progress_on": form.status,
            "trigger_mode": "once",
        }
        private: dict[str, Any] = {"api_visibility": "private"}
        form.go.click(None, js=_SCROLL, **private)
        # One function of both, so that what one visitor's call has taken is what the next one's is expected to take.
        gr.on([form.go.click, form.picture.upload], **analysis, api_name="analyze")
        chosen = form.gallery.select(self._pick, outputs=form.picture, show_progress="hidden", **private)
        chosen.then(None, js=_SCROLL, **private)
        chosen.then(**analysis, **private)
        results.clicks.select(lambda: gr.Tabs(selected="affinity"), None, results.tabs, queue=False, **private)
        for clicked in (results.photo, results.clicks):
            clicked.select(
                self.affinity,
                [results.photo, settings],
                [part for column in self._columns.values() for part in column.lit],
                concurrency_id="backbone",
                show_progress_on=results.photo,
                trigger_mode="always_last",
                **private,
            ).then(None, js=_SCROLL, **private)
        for column in self._columns.values():
            _, segments, count, hierarchy = column.filled[:4]
            count.input(
                self.recut,
                [results.photo, hierarchy, count],
                segments,
                show_progress="hidden",
                trigger_mode="always_last",
                queue=False,
                **private,
            )
        for trigger in (form.load_basis.click, form.basis.submit):
            trigger(
                self.describe_basis,
                [form.basis, form.model],
                [form.about_basis, form.model],
                concurrency_id="backbone",
                **private,
            )

    def _pick(self, event: gr.SelectData) -> Any:
        return list(self._examples.values())[event.index]
