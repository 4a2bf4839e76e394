"""Images through the backbone, batch by batch, a failed one named or skipped."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from tqdm.auto import tqdm

from hf_spectral.config import Pathway
from hf_spectral.dataset.report import Skipped
from hf_spectral.dataset.source import Item
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.records import AttentionRecord, SkippedLayer

OnError = Literal["raise", "skip"]
Add = Callable[[AttentionRecord], None]


class Backbone(Protocol):
    """What a host's pipeline offers to a dataset: `SpectralPathwaysPipeline` and `SpectralDiffusionPipeline` do."""

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Settings that stand in for what a call leaves out, by name."""

    def preprocess(self, image: Any, *, resolution: int | None = None) -> dict[str, Any]:
        """Read one picture; the result holds what the backbone is shown, and `size`, the picture's height and width."""

    def grouped(self, batch: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Group what can be read at once."""

    def records(
        self, group: Sequence[Mapping[str, Any]], on_record: Add, layers: Iterable[int] | None = None
    ) -> list[SkippedLayer]:
        """Run the backbone, handing on each layer at each timestep once; return the layers that give no record."""

    def check_reading(
        self,
        resolution: int | None = None,
        layers: Iterable[int] | None = None,
        pathways: Sequence[Pathway] = (),
    ) -> None:
        """Refuse settings that no picture could be read with, as far as that is known before one is."""

    def describe_backbone(self, resolution: int | None = None) -> dict[str, Any]:
        """Describe the backbone."""

    def image_column(self, features: Mapping[str, Any], names: Iterable[str], given: str | None = None) -> str:
        """Find the column of pictures."""


@dataclasses.dataclass(frozen=True)
class Read:
    """An image on its way through the backbone.

    Args:
        item: Where it comes from.
        prepared: What the pipeline made of it.
    """

    item: Item
    prepared: dict[str, Any]


Opened = Callable[[Sequence[Read]], contextlib.AbstractContextManager[Add]]


@dataclasses.dataclass
class Reader:
    """Reads batches; what fails is raised, or noted and left out.

    Args:
        pipe: The pipeline.
        resolution: Longer side in pixels, or None.
        on_error: "raise" or "skip".
        skipped: What was left out, by position.
        fix: What to do about an image that fails.
    """

    pipe: Backbone
    resolution: int | None
    on_error: OnError
    skipped: dict[int, Skipped] = dataclasses.field(default_factory=dict)
    fix: str = "Mend or remove it, or pass on_error='skip'"

    def __post_init__(self) -> None:
        """Refuse an unknown way to treat errors."""
        if self.on_error not in ("raise", "skip"):
            raise SpectralError(
                "on_error", expected="'raise' or 'skip'", got=repr(self.on_error), fix="Choose one of these"
            )

    def read(self, batch: Sequence[Item], opened: Opened, layers: Iterable[int] | None) -> None:
        """Run a batch through the backbone, the images of one size together; those skipped before stay out.

        Args:
            batch: The images.
            opened: Gives, for some images of one size, a block in which their records are taken; what an image gave
                counts only if its block ends without an error.
            layers: Indices of the layers to record.

        Raises:
            SpectralError: If an image fails and `on_error` is "raise".
        """
        read: list[Read] = []
        for item in batch:
            if item.position in self.skipped:
                continue
            try:
                read.append(Read(item, self.pipe.preprocess(item.image, resolution=self.resolution)))
            except SpectralError as error:
                self._fail(item, error)
        layers = None if layers is None else list(layers)
        for positions in self.pipe.grouped([one.prepared for one in read]):
            self._run([read[position] for position in positions], opened, layers)

    def _run(self, group: Sequence[Read], opened: Opened, layers: list[int] | None) -> None:
        try:
            with opened(group) as add:
                self.pipe.records([one.prepared for one in group], add, layers)
        except UnsupportedBackboneError:
            raise
        except SpectralError as error:
            if len(group) == 1:
                self._fail(group[0].item, error)
                return
            for one in group:  # One by one, to learn which it was.
                self._run([one], opened, layers)

    def _fail(self, item: Item, error: SpectralError) -> None:
        reason = _without_path(str(error), item)
        if self.on_error == "raise":
            raise SpectralError(
                "dataset",
                expected="images that can be analyzed",
                got=f"{item.name}: {reason.removesuffix('.')}",
                fix=self.fix,
            ) from error
        self.skipped[item.position] = Skipped(item.position, item.name, reason)


def in_batches(items: Iterator[Item], batch_size: int) -> Iterator[list[Item]]:
    """Cut a share into batches, always at the same places.

    Args:
        items: The images.
        batch_size: Images of a batch.

    Yields:
        Batches; the last may be shorter.
    """
    while batch := list(itertools.islice(items, batch_size)):
        yield batch


def progress_bar(title: str, total: int | None, done: int, shown: bool) -> Any:
    """Return a bar that shows images per second.

    Args:
        title: What is being done.
        total: Images, or None if unknown.
        done: Images done in an earlier run.
        shown: False for silence.

    Returns:
        A tqdm bar.
    """
    return tqdm(desc=title, total=total, initial=done, unit="image", disable=not shown)


def _without_path(text: str, item: Item) -> str:
    value = item.image.get("path") if isinstance(item.image, Mapping) else item.image
    if isinstance(value, str) and ("/" in value or "\\" in value):
        text = text.replace(value, item.name)
    return text
