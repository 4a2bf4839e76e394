"""Images through the backbone, batch by batch, a failed one named or skipped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_spectral.dataset.source import Item
from hf_spectral.dataset.summary import Skipped
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.records import AttentionRecord, Pathway, SkippedLayer

OnError = Literal["raise", "skip"]
DIGEST_BYTES = 16
_UNREADABLE = bytes(DIGEST_BYTES)
Add = Callable[[AttentionRecord], None]


class Backbone(Protocol):
    """What a host's pipeline offers to a dataset: `SpectralPathwaysPipeline` and `SpectralDiffusionPipeline` do."""

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Settings that stand in for what a call leaves out, by name."""

    def read_image(self, source: Any) -> Image.Image:
        """Return a picture as RGB, upright, as `preprocess` sees it."""

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
        image: What the pipeline was given.
        prepared: What the pipeline made of it.
    """

    item: Item
    image: Any
    prepared: dict[str, Any]


Opened = Callable[[Sequence[Read]], contextlib.AbstractContextManager[Add]]


@dataclasses.dataclass
class Reader:
    """Reads batches; what fails is raised, or noted and left out.

    It knows images by their content: the first pass notes a digest of each, of the encoded picture or, where the
    dataset gives pixels, of these; whatever is read again, by a later pass or a later run, has to be the same.

    Args:
        pipe: The pipeline.
        resolution: Longer side in pixels, or None.
        on_error: "raise" or "skip".
        skipped: What was left out, by position.
        fix: What to do about an image that fails.
        digests: `DIGEST_BYTES` for each image of the share, in order.
        is_restored: True if digests come from a checkpoint.
        is_first: True in the first pass.
    """

    pipe: Backbone
    resolution: int | None
    on_error: OnError
    skipped: dict[int, Skipped] = dataclasses.field(default_factory=dict)
    fix: str = "Mend or remove it, or pass on_error='skip'"
    digests: bytearray = dataclasses.field(default_factory=bytearray)
    is_restored: bool = False
    is_first: bool = True
    _count: int = 0  # Images of this pass so far.

    def __post_init__(self) -> None:
        """Refuse an unknown way to treat errors."""
        if self.on_error not in ("raise", "skip"):
            raise SpectralError(
                "on_error", expected="'raise' or 'skip'", got=repr(self.on_error), fix="Choose one of these"
            )

    def again(self) -> Reader:
        """Return the reader of the next pass over the same images: what passed before has to pass, it is in the sums.

        Returns:
            A reader that knows what this one has read and skipped.
        """
        fix = "The first pass could read it: look after the disk or the network, and start again"
        return dataclasses.replace(self, on_error="raise", fix=fix, is_first=False, _count=0)

    def batches(self, items: Iterator[Item], batch_size: int, done: int = 0) -> Iterator[list[Item]]:
        """Cut a share into batches, always at the same places.

        Args:
            items: The images of the share, from its beginning.
            batch_size: Images of a batch.
            done: Images that an earlier run has done: they are only compared.

        Yields:
            Batches of the others; the last may be shorter.

        Raises:
            SpectralError: If an image differs from what an earlier pass or run has read, or there are fewer.
        """
        for item in itertools.islice(items, done):
            self._known(item)
        while batch := list(itertools.islice(items, min(batch_size, sys.maxsize))):
            yield batch
        if self._count < len(self.digests) // DIGEST_BYTES:
            raise self._differs(f"{self._count} where there were {len(self.digests) // DIGEST_BYTES}")

    def read(self, batch: Sequence[Item], opened: Opened, layers: Iterable[int] | None) -> None:
        """Run a batch through the backbone, the images of one size together; those skipped before stay out.

        Args:
            batch: The images.
            opened: Gives, for some images of one size, a block in which their records are taken; what an image gave
                counts only if its block ends without an error.
            layers: Indices of the layers to record.

        Raises:
            SpectralError: If an image fails and `on_error` is "raise", or differs from what was read before.
            UnsupportedBackboneError: If the backbone can read no image at all.
        """
        read: list[Read] = []
        for item in batch:
            image, error = self._known(item)
            if item.position in self.skipped:
                continue
            try:
                if error is not None:
                    raise error
                image = item.decoded(image)
                read.append(Read(item, image, self.pipe.preprocess(image, resolution=self.resolution)))
            except UnsupportedBackboneError:
                raise
            except SpectralError as raised:
                self._fail(item, raised)
        layers = None if layers is None else list(layers)
        for positions in self.pipe.grouped([one.prepared for one in read]):
            self._run([read[position] for position in positions], opened, layers)

    def _known(self, item: Item) -> tuple[Any, SpectralError | None]:
        """Note what an image is, or compare it with what it was.

        Returns:
            The image, as pixels where the dataset does not give it encoded, or the reason why it cannot be read.

        Raises:
            SpectralError: If it differs from what was read before.
        """
        image, error, digest = item.image, item.error, _UNREADABLE
        try:
            if error is None and item.content is None:
                image = self.pipe.read_image(image)
        except SpectralError as raised:
            error = raised
        if error is None:
            content, kind = (image.tobytes(), f"{image.size}") if item.content is None else (item.content, "")
            digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES, key=f"{item.mode}{kind}".encode()).digest()
        known = bytes(self.digests[self._count * DIGEST_BYTES :][:DIGEST_BYTES])
        self._count += 1
        if not known and self.is_first:
            self.digests += digest
        elif known != digest:
            reason = f", which cannot be read now: {_without_path(str(error), item)}" if error is not None else ""
            raise self._differs(
                f"{item.name}{reason.removesuffix('.')}" if known else f"{item.name}, which is one more"
            )
        return image, error

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
        reason = _without_path(str(error), item)
        if self.on_error == "raise":
            raise SpectralError(
                "dataset",
                expected="images that can be analyzed",
                got=f"{item.name}: {reason.removesuffix('.')}",
                fix=self.fix,
            ) from error
        self.skipped[item.position] = Skipped(item.position, item.name, reason)


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
