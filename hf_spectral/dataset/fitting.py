"""Fit one basis to a whole dataset: in a stream, on any number of processes, resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from hf_spectral.basis import BasisAccumulator, SpectralBasis
from hf_spectral.checks import require_positive_int
from hf_spectral.config import SpectralConfig, defaults_hold
from hf_spectral.dataset.checkpoint import Checkpoint, Progress
from hf_spectral.dataset.reading import Backbone, FitReport, OnError, Reader, ReadSettings
from hf_spectral.dataset.source import Skipped, none_left
from hf_spectral.layer_weights import as_weighting
from hf_spectral.records import Pathway
from hf_spectral.torch_state import plain_torch, with_float64

if TYPE_CHECKING:
    from typing_extensions import Unpack

_logger = logging.getLogger(__name__)
_SUMS, _GRAM = "sums", "gram"
# Measured by `tests/benchmarks/dataset.py --parts quality`.
_NUM_EIGENVECTORS = 128
# Skipped images that a basis lists at most: its description is to stay small.
_MAX_LISTED = 1000


class FitSettings(ReadSettings, total=False):
    """Arguments of `fit` by name."""

    pathway: Pathway
    num_eigenvectors: int | None
    layers: Sequence[int] | None
    resolution: int | None
    max_width: int | None
    degree_images: int | None
    layer_weights: str | Mapping[int, float] | Sequence[float]
    checkpoint_dir: str | os.PathLike[str] | None
    checkpoint_every: int
    seed: int


@overload
def fit(
    pipe: Backbone, dataset: Any, *, return_report: Literal[False] = False, **settings: Unpack[FitSettings]
) -> SpectralBasis: ...


@overload
def fit(
    pipe: Backbone, dataset: Any, *, return_report: Literal[True], **settings: Unpack[FitSettings]
) -> tuple[SpectralBasis, FitReport]: ...


@defaults_hold
@plain_torch()
def fit(
    pipe: Backbone,
    dataset: Any,
    *,
    pathway: Pathway = "what",
    num_eigenvectors: int | None = None,
    image_column: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    layers: Sequence[int] | None = None,
    resolution: int | None = None,
    max_width: int | None = None,
    degree_images: int | None = None,
    layer_weights: str | Mapping[int, float] | Sequence[float] = "auto",
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    on_error: OnError = "raise",
    seed: int = 0,
    progress: bool = True,
    return_report: bool = False,
) -> SpectralBasis | tuple[SpectralBasis, FitReport]:
    """Find the leading eigenvectors of one spectral problem over all tokens of all images.

    The backbone runs over the data twice, once for the sums that give every token's degree and once for the Gram
    matrix; only one layer of one batch and these sums are held in memory. The solution is exact but for `max_width` and
    `degree_images`.

    Under `accelerate launch` or `torchrun` each process reads its share, and all return the same basis: a dataset is
    cut into contiguous blocks; of a stream each process uses every n-th image, reading past the others.

    With `checkpoint_dir`, a run that was killed at any moment goes on where it was when the same call is made again,
    and finds the same numbers. The folder is kept after success: the same call then only solves, also for another
    `num_eigenvectors`. A fit that failed at a bad image may be continued with `on_error="skip"`.

    Where the pipeline has defaults of the same name, such as `resolution`, they stand in for what the call leaves out.

    The two passes have to see the same images, and a checkpoint goes on with the images that it was made from and no
    others: each is compared by its content (a digest of the encoded picture, or of the pixels where the dataset gives
    pixels), and the first one that differs is named. Images that an earlier run has done are read again for that, but
    do not pass the backbone again.

    Images are read as the dataset shows them: `dataset.with_transform` and `datasets.Image(mode=...)` are obeyed.

    Args:
        pipe: The pipeline of the backbone; of a diffusion model, `pipe.at(...)` tells timesteps and prompt, and
            all layers at all timesteps enter the one problem.
        dataset: A folder of pictures, subfolders included; the id of a dataset on the Hub; a `datasets.Dataset` or
            `IterableDataset`; a column or a `KeyDataset` of one; a list of images; a torch dataset; or a function
            without arguments that returns a new iterator of images at every call. A string that names an existing
            folder is that folder. The images are read twice, in the same order both times.
        pathway: "where" (queries with keys) or "what" (values with values).
        num_eigenvectors: How many, the trivial one among them. None takes 128, or all there are where fewer exist: the
            clusters of a basis of 140 images take as many (`segmentation.leading_eigenvectors`), and each costs 2
            bytes per token of every row.
        image_column: Column of the pictures; None finds the only image column.
        split: Of a dataset on the Hub, or of a `DatasetDict`; None takes the only one.
        streaming: True reads a dataset of the Hub without storing it.
        revision: Branch, tag or commit of a dataset on the Hub; None takes its main branch.
        batch_size: Images that are read together; those of one size run through the backbone at once.
        num_workers: Threads that read images ahead of the backbone; 0 reads each when it is needed. The result is the
            same.
        layers: Indices of the layers to use, negative ones from the end; None means all.
        resolution: Longer side in pixels at which pictures are read; None takes the backbone's image size.
        max_width: Bound on the width of the Gram matrix, for wide backbones; see `BasisAccumulator`.
        degree_images: Images of the first pass: their sums then stand for those of all, and the backbone runs over the
            data once instead of twice. None runs over all, which is exact. Of 48 photographs (DINOv2-small), the first
            12 change no eigenvalue by more than 0.001, and keep 99.98 % of the span of the first 16 eigenvectors; the
            first one alone 0.012 and 99.9 %. With several processes, each takes its share of them.
        layer_weights: "auto" weighs layers without labels: of those whose own eigenvectors are at least as smooth
            inside images as the mean, each by how far it agrees with the others (`basis.layer_weights`); layers of
            different resolution it weighs alike, since their weights enter the second pass before there is evidence.
            "equal" is the paper's choice; or give one number per layer that takes part, or numbers by layer index.
        checkpoint_dir: Where to save what was added up; None saves nothing.
        checkpoint_every: Images between two saves, rounded up to whole batches: at most so many are read again.
        on_error: "raise" names the image that fails; "skip" leaves it out of both passes and lists it in
            `basis.skipped`.
        seed: Seed of the bounded width and of the solver's start.
        progress: True shows bars with images per second.
        return_report: True returns a `FitReport` too: what was skipped, and the figures of the run.

    Returns:
        The basis; it knows the backbone it belongs to, and what was skipped. With `return_report=True` a pair of basis
        and report.

    Raises:
        SpectralError: If an argument is out of range, the dataset is empty or has no column of pictures, an image
            fails and `on_error` is "raise", no image is left, the second pass sees other images than the first, fewer
            eigenvectors exist, or the checkpoint is in use, belongs to other settings or other images, or cannot be
            written.
        NotConvergedError: If the solver does not reach its tolerance.
    """
    checkpoint_every = require_positive_int("checkpoint_every", checkpoint_every)
    degree_images = None if degree_images is None else require_positive_int("degree_images", degree_images)
    resolution = None if resolution is None else require_positive_int("resolution", resolution)
    config = SpectralConfig(
        pathway,
        "cosine",
        num_eigenvectors=_NUM_EIGENVECTORS if num_eigenvectors is None else num_eigenvectors,
        layers=None if layers is None else tuple(layers),
        seed=seed,
        layer_weights=as_weighting(layer_weights),
    )
    # A denoiser that is offloaded layer by layer lies on the device "meta".
    device, estimates_degrees = with_float64(pipe.device), degree_images is not None
    accumulator = BasisAccumulator(config, max_width, device, estimates_degrees)
    pipe.check_reading(resolution, config.layers, [pathway])
    reader = Reader(
        pipe, dataset, image_column, split, streaming, revision, batch_size, num_workers, resolution, on_error, progress
    )
    backbone = pipe.describe_backbone(resolution)
    run = _Run(reader, accumulator, checkpoint_every, degree_images)
    if checkpoint_dir is not None:
        # The number of eigenvectors is chosen when solving, and an image that failed may be skipped the next time.
        settings = {**config.to_dict(), "max_width": accumulator.max_width, "batch_size": reader.batch_size}
        settings |= {"num_images": reader.source.length, "num_processes": reader.processes.count}
        settings |= {"backbone": backbone, "degree_images": degree_images}
        settings.pop("num_eigenvectors")
        run.checkpoint = Checkpoint(Path(checkpoint_dir), settings, reader.processes.rank)
    basis = run.basis(backbone, exactly=num_eigenvectors is not None)
    report = reader.finish(basis.num_images)
    basis = dataclasses.replace(basis, skipped=_listed(report.skipped))
    return (basis, report) if return_report else basis


def _listed(skipped: Sequence[Skipped]) -> tuple[str, ...]:
    listed = [f"{one.name}: {one.reason}" for one in skipped[:_MAX_LISTED]]
    return (*listed, f"and {len(skipped) - _MAX_LISTED} more") if len(skipped) > _MAX_LISTED else tuple(listed)


@dataclasses.dataclass
class _Run:
    """The two passes of one process, and its exchange with the other processes between them."""

    reader: Reader
    accumulator: BasisAccumulator
    checkpoint_every: int
    degree_images: int | None = None
    checkpoint: Checkpoint | None = None

    def basis(self, backbone: dict[str, Any], exactly: bool) -> SpectralBasis:
        processes, config = self.reader.processes, self.accumulator.config
        with contextlib.ExitStack() as stack:
            with processes.agreed():
                if self.checkpoint is not None:
                    stack.enter_context(self.checkpoint.locked())
                self._pass(_SUMS)
            self._share_sums()
            self.accumulator.finish_sums()  # Also in a process whose share is empty.
            self._bind_second_pass()
            with processes.agreed():
                self._pass(_GRAM)
            tensors = self.accumulator.state_dict()["tensors"]
            processes.add_up({name: tensor for name, tensor in tensors.items() if name.startswith("gram")})
            count, seed = config.num_eigenvectors, config.seed
            return processes.in_main(lambda: self.accumulator.solve(count, seed, backbone=backbone, exactly=exactly))

    def _pass(self, name: str) -> None:
        reader, is_first = self.reader, name == _SUMS
        done, finished = self._restore(name)
        if finished and is_first:
            return  # The second pass compares every image.
        adding = self.accumulator.adding_sums if is_first else self.accumulator.adding_gram
        title = f"fit, pass {1 if is_first else 2} of 2"
        unsaved = 0
        limit = None
        if is_first and self.degree_images is not None:
            limit = -(-self.degree_images // reader.processes.count)
        takes_new = is_first or self.degree_images is not None
        for batch in reader.run(lambda _: adding(), self._layers, title, done, takes_new, limit):
            done, unsaved = done + len(batch), unsaved + len(batch)
            if unsaved + reader.batch_size > self.checkpoint_every:
                self._save(name, done, finished=False)
                unsaved = 0
        if not finished:
            self._save(name, done, finished=True)

    def _layers(self) -> list[int] | None:
        """Record only what is used, once the first image has shown which layers these are."""
        return [layer.index for layer in self.accumulator.layers] or None

    def _save(self, name: str, done: int, finished: bool) -> None:
        if self.checkpoint is not None:
            skipped, digests = tuple(self.reader.skipped.values()), bytes(self.reader.digests)
            self.checkpoint.save(name, Progress(self.accumulator.state_dict(), done, finished, skipped, digests))

    def _restore(self, name: str) -> tuple[int, bool]:
        """Go on where an earlier run was; return how many images it had done, and whether these were all."""
        saved = self.checkpoint.load(name) if self.checkpoint is not None else None
        if saved is None:
            return 0, False
        self.accumulator.load_state_dict(saved.state)
        self.reader.skipped.update({one.position: one for one in saved.skipped})
        self.reader.digests, self.reader.is_restored = bytearray(saved.digests), True
        _logger.info("%s: goes on after %d images", name, saved.done)
        return saved.done, saved.finished

    def _bind_second_pass(self) -> None:
        """Tie what the second pass saves to the images of the first."""
        if self.checkpoint is None:
            return
        images = hashlib.blake2b(digest_size=8)
        for digests in self.reader.processes.gathered(bytes(self.reader.digests)):
            images.update(digests)
        settings = {**self.checkpoint.settings, "images": images.hexdigest()}
        self.checkpoint = dataclasses.replace(self.checkpoint, settings=settings)

    def _share_sums(self) -> None:
        """Give every process the sums of all, added in the order of their ranks so that all have the same bits."""
        state = self.accumulator.state_dict()
        own = {name: tensor.cpu() for name, tensor in state["tensors"].items()}
        states = [one for one in self.reader.processes.gathered({**state, "tensors": own}) if one["tensors"]]
        if not states:
            raise none_left(self.reader.all_skipped())
        if self.reader.processes.count == 1:
            return
        self.accumulator.load_state_dict(states[0])
        for state in states[1:]:
            ours = self.accumulator
            shard = BasisAccumulator(ours.config, ours.max_width, "cpu", ours.estimates_degrees)
            shard.load_state_dict(state)
            self.accumulator.merge(shard)
