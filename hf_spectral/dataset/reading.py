"""Images through the backbone, batch by batch, a failed one named or skipped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, get_args

import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_spectral.atomic import replacing
from hf_spectral.checks import require_int, require_positive_int
from hf_spectral.dataset.ahead import ahead
from hf_spectral.dataset.opening import open_source
from hf_spectral.dataset.processes import Processes
from hf_spectral.dataset.source import Find, Item, Skipped
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.records import AttentionRecord, Pathway, SkippedLayer

OnError = Literal["raise", "skip"]
DIGEST_BYTES = 16
_UNREADABLE = bytes(DIGEST_BYTES)
Add = Callable[[AttentionRecord], None]
_logger = logging.getLogger(__name__)


class ReadSettings(TypedDict, total=False):
    """Arguments of `fit` and `transform` that tell what is read of a dataset, and how: see `fit`."""

    image_column: str | None
    split: str | None
    streaming: bool
    revision: str | None
    batch_size: int
    num_workers: int
    on_error: OnError
    progress: bool


class Backbone(Protocol):
    """What this room needs of a pipeline: `SpectralPathwaysPipeline` and `SpectralDiffusionPipeline` have it."""

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""

    @property
    def prepares_with_model(self) -> bool:
        """Whether `preprocess` runs a part of the model, so that only one thread at a time may call it."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Settings that stand in for what a call leaves out, by name."""

    def read_image(self, source: Any) -> Image.Image:
        """Return a picture as RGB, upright, as `preprocess` sees it."""

    def preprocess(self, image: Any, *, resolution: int | None = None, keeps_picture: bool = True) -> dict[str, Any]:
        """Read one picture; the result holds what the backbone is shown, and `size`, the picture's height and width."""

    def grouped(self, batch: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Group what can be read at once."""

    def records(
        self, group: Sequence[Mapping[str, Any]], on_record: Add, layers: Iterable[int] | None = None
    ) -> list[SkippedLayer]:
        """Run the backbone, handing on each layer at each timestep once; return the layers that give no record."""

    def check_reading(
        self, resolution: int | None = None, layers: Iterable[int] | None = None, pathways: Sequence[Pathway] = ()
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
        image: The picture, as given to `preprocess`.
        digest: Identity of its content.
        prepared: The result of `preprocess`; empty before that.
        error: Why it cannot be read, or None.
    """

    item: Item
    image: Any
    digest: bytes = _UNREADABLE
    prepared: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: SpectralError | None = None


@dataclasses.dataclass(frozen=True)
class FitReport:
    """Figures of a run of `fit` or `transform`, returned with `return_report=True`.

    Example:
        >>> basis, report = hf_spectral.fit(pipe, "photos/", on_error="skip", return_report=True)
        >>> [one.name for one in report.skipped]

    Args:
        num_images: Images that took part, on all processes.
        skipped: Images that were left out, in the order of the dataset.
        num_processes: Number of processes, at least 1.
        seconds: Wall time in seconds.
    """

    num_images: int
    skipped: tuple[Skipped, ...]
    num_processes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return dataclasses.asdict(self) | {"skipped": [dataclasses.asdict(one) for one in self.skipped]}

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the fields to a JSON file. An interrupted call leaves no partial file.

        Args:
            path: Path of the file. Missing parent folders are created.

        Returns:
            The path of the file.
        """
        path = Path(path)
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path


Opened = Callable[[Sequence[Read]], contextlib.AbstractContextManager[Add]]


class Reader:
    """Reads this process's share of a dataset, batch by batch; an image that fails raises an error or is left out.

    Images are identified by their content. The first pass stores a digest of each encoded picture, or of the pixels if
    the dataset gives pixels. Images that a later pass or a later run reads again must have the same digest.

    Args:
        pipe: The pipeline.
        dataset: A dataset of any kind, see `open_source`.
        image_column: Column of the pictures; None finds the only image column.
        split: As for `open_source`.
        streaming: As for `open_source`.
        revision: As for `open_source`.
        batch_size: Images that are read together.
        num_workers: Threads that read images ahead; 0 reads each one when it is needed.
        resolution: Longer side in pixels, or None.
        on_error: "raise" or "skip".
        progress: True shows a bar for each pass.
        whole_rows: False reads the column of pictures only.

    Attributes:
        skipped: Images that were left out, by position.
        digests: `DIGEST_BYTES` for each image of the share, in order.
        is_restored: True if the digests come from a checkpoint.

    Raises:
        SpectralError: If an argument is out of range, or the dataset is of no known kind, empty, or without pictures.
    """

    def __init__(
        self,
        pipe: Backbone,
        dataset: Any,
        image_column: str | None,
        split: str | None,
        streaming: bool,
        revision: str | None,
        batch_size: int,
        num_workers: int,
        resolution: int | None,
        on_error: OnError,
        progress: bool,
        whole_rows: bool = False,
    ) -> None:
        self._begun = time.perf_counter()
        if on_error not in get_args(OnError):
            raise SpectralError("on_error", expected="'raise' or 'skip'", got=repr(on_error), fix="Choose one of these")
        self.batch_size = require_positive_int("batch_size", batch_size)
        self.pipe, self.resolution, self.on_error, self.progress = pipe, resolution, on_error, progress
        self._num_workers = require_int("num_workers", num_workers, 0)
        self.source = open_source(dataset, image_column, pipe.image_column, whole_rows, split, streaming, revision)
        self.processes = Processes(pipe.device)
        self.skipped: dict[int, Skipped] = {}
        self.digests = bytearray()
        self.is_restored = False
        self._takes_new = True
        self._again: set[int] = set()
        self._count = 0  # Images of this pass so far.

    def run(
        self,
        opened: Opened,
        layers: Callable[[], list[int] | None] = lambda: None,
        title: str = "",
        done: int = 0,
        takes_new: bool = True,
        limit: int | None = None,
    ) -> Iterator[list[Item]]:
        """Run the share through the backbone in batches that begin at the same images every time.

        Images that were skipped before are skipped again.

        Args:
            opened: Function that takes some images of one size and returns a context manager, which takes their
                records. They count only if it is left without an error.
            layers: Function that returns the indices of the layers to record, called before each batch; None means all.
            title: Title of the bar.
            done: Number of images that an earlier run has read; they are compared only.
            takes_new: False for a later pass over the same images. An image that was read before may not fail: it is in
                the sums.
            limit: Images of the share to read at most; None reads all.

        Yields:
            Each batch once it has passed; the last may be shorter.

        Raises:
            SpectralError: If an image fails and `on_error` is "raise" or it was read before, or an image differs from
                what an earlier pass or run has read, or there are fewer.
            UnsupportedBackboneError: If the backbone can read no image at all.
        """
        self._takes_new, self._count = takes_new, 0
        share, total = self.source.share(self.processes)
        numbered = enumerate(itertools.islice(share, limit))
        found = ahead(lambda one: self._found(one[1], is_compared_only=one[0] < done), numbered, self._num_workers)
        if total is None and not takes_new:  # A stream that has been read once.
            total = len(self.digests) // DIGEST_BYTES
        if limit is not None:
            total = limit if total is None else min(total, limit)
        with contextlib.closing(found) as reads, self.bar(title, total, done) as bar:
            for read in itertools.islice(reads, done):
                self._compare(read)
            while batch := list(itertools.islice(reads, min(self.batch_size, sys.maxsize))):
                self._read(batch, opened, layers())
                bar.update(len(batch))
                yield [read.item for read in batch]
        if self._count < len(self.digests) // DIGEST_BYTES:
            raise self._differs(f"{self._count} where there were {len(self.digests) // DIGEST_BYTES}")

    def bar(self, title: str, total: int | None, done: int = 0) -> Any:
        """Return a bar that shows images per second, in one process.

        Args:
            title: What is being done.
            total: Images, or None if unknown.
            done: Images done in an earlier run.

        Returns:
            A tqdm bar.
        """
        shown = self.progress and self.processes.is_main
        return tqdm(desc=title, total=total, initial=done, unit="image", disable=not shown)

    def all_skipped(self) -> tuple[Skipped, ...]:
        """Return the images that were left out in any process, in the order of the dataset; all processes must call."""
        shares = self.processes.gathered(self.skipped)
        skipped = {position: one for share in shares for position, one in share.items()}
        return tuple(skipped[position] for position in sorted(skipped))

    def finish(self, num_images: int) -> FitReport:
        """Warn in one process of every image that was left out, and return the figures of the run.

        Args:
            num_images: Images that took part, in all processes.

        Returns:
            The figures, with what was left out in all processes.
        """
        skipped = self.all_skipped()
        for one in skipped if self.processes.is_main else ():
            _logger.warning("Skipped %s: %s", one.name, one.reason)
        seconds = time.perf_counter() - self._begun
        if self.processes.is_main:
            _logger.info("%d images took %.1f s", num_images, seconds)
        return FitReport(num_images, skipped, self.processes.count, seconds)

    def _found(self, find: Find, is_compared_only: bool) -> Read:
        """Find one image and prepare it, as far as that may be done ahead by other threads."""
        item = find()
        read, image = Read(item, item.image, error=item.error), item.image
        if item.error is not None:
            return read
        try:
            if item.content is None:
                image = self.pipe.read_image(image)
            content, kind = (image.tobytes(), f"{image.size}") if item.content is None else (item.content, "")
            digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES, key=f"{item.mode}{kind}".encode()).digest()
            read = Read(item, image, digest)
            if is_compared_only or item.position in self.skipped:
                return read
            image = item.decoded(image)
            if self.pipe.prepares_with_model:
                return Read(item, self.pipe.read_image(image), digest)
            return Read(item, image, digest, self._prepared(image))
        except SpectralError as error:
            return dataclasses.replace(read, error=error)

    def _prepared(self, image: Any) -> dict[str, Any]:
        return self.pipe.preprocess(image, resolution=self.resolution, keeps_picture=False)

    def _read(self, batch: Sequence[Read], opened: Opened, layers: list[int] | None) -> None:
        good: list[Read] = []
        self._again.clear()
        for read in batch:
            self._compare(read)
            if read.item.position in self.skipped:
                continue
            try:
                if read.error is not None:
                    raise read.error
                prepared = read.prepared or self._prepared(read.image)
                good.append(dataclasses.replace(read, prepared=prepared))
            except UnsupportedBackboneError:
                raise
            except SpectralError as error:
                self._fail(read.item, error)
        for positions in self.pipe.grouped([one.prepared for one in good]):
            self._run([good[position] for position in positions], opened, layers)

    def _compare(self, read: Read) -> None:
        """Store the digest of an image that is new, or compare it with the stored one.

        Raises:
            SpectralError: If it differs from what was read before.
        """
        known = bytes(self.digests[self._count * DIGEST_BYTES :][:DIGEST_BYTES])
        self._count += 1
        if known:
            self._again.add(read.item.position)
        if not known and self._takes_new:
            self.digests += read.digest
        elif known != read.digest:
            name, error = read.item.name, read.error
            reason = f", which cannot be read now: {_without_path(str(error), read.item)}" if error is not None else ""
            raise self._differs(f"{name}{reason.removesuffix('.')}" if known else f"{name}, which is one more")

    def _differs(self, got: str) -> SpectralError:
        if self.is_restored:
            expected, fix = "the images that it was made from, in their order", "Give the same data, or another folder"
            return SpectralError("checkpoint_dir", expected=expected, got=f"others: {got}", fix=fix)
        return SpectralError(
            "dataset",
            expected="the same images in the same order every time they are read",
            got=f"others than in the first pass: {got}",
            fix="Turn off random augmentation and shuffling, and leave the files alone meanwhile",
        )

    def _run(self, group: Sequence[Read], opened: Opened, layers: list[int] | None) -> None:
        try:
            with opened(group) as add:
                self.pipe.records([one.prepared for one in group], add, layers)
        except SpectralError as error:
            if isinstance(error, UnsupportedBackboneError) or error.argument in ("layers", "layer_weights"):
                raise  # No image is to blame.
            if len(group) == 1:
                self._fail(group[0].item, error)
                return
            for one in group:  # One by one, to learn which it was.
                self._run([one], opened, layers)

    def _fail(self, item: Item, error: SpectralError) -> None:
        reason, is_new = _without_path(str(error), item), item.position not in self._again
        if self.on_error == "skip" and is_new:
            self.skipped[item.position] = Skipped(item.position, item.name, reason)
            return
        again = "The first pass could read it: look after the disk or the network, and start again"
        raise SpectralError(
            "dataset",
            expected="images that can be analyzed",
            got=f"{item.name}: {reason.removesuffix('.')}",
            fix="Mend or remove it, or pass on_error='skip'" if is_new else again,
        ) from error


def _without_path(text: str, item: Item) -> str:
    value = item.image.get("path") if isinstance(item.image, Mapping) else item.image
    if isinstance(value, str) and ("/" in value or "\\" in value):
        text = text.replace(value, item.name)
    return text
