"""Two passes over a dataset, layer by layer, shard by shard: sums first, then one Gram matrix, then the basis."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from hf_spectral.affinities import Cosine
from hf_spectral.basis.eigen import solve_totals
from hf_spectral.basis.factors import (
    BasisLayer,
    factor,
    kept_dimensions,
    layer_columns,
    match,
    normalized_factor,
    reduced,
)
from hf_spectral.basis.gram import Shape, coupling
from hf_spectral.basis.layer_weights import final_weights
from hf_spectral.basis.model import SpectralBasis
from hf_spectral.basis.sums import Totals
from hf_spectral.checks import require_positive_int, require_same, require_seed
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, finest
from hf_spectral.layer_choice import LayerChoice, counted
from hf_spectral.layer_weights import Weighting, as_weighting, of_known, weight_list
from hf_spectral.records import AttentionRecord, UnitTokens, unit_tokens
from hf_spectral.torch_state import plain_torch

Add = Callable[[AttentionRecord], None]


class BasisAccumulator:
    """Adds up what a dataset-level problem needs; memory does not grow with the number of images.

    Over all tokens of all images, layer l has the affinity W_l = F_l J_l F_l^T (`operators.cosine_gram`), the degrees
    d_l = F_l J_l (sum F_l), which the first pass makes possible, and S_l = G_l J_l G_l^T with G_l = D_l^-1/2 F_l.
    The joint problem A = sum_l w_l P_l^T S_l P_l against B = sum_l w_l P_l^T P_l has the rank of H = [P_l^T G_l]_l at
    most, and its eigenvectors follow from C = H^T B^-1 H, the Gram matrix that the second pass adds up (`eigen`):

        for records in images: accumulator.add_sums(records)
        for records in images: accumulator.add_gram(records)
        basis = accumulator.solve(num_eigenvectors=32)

    An image that raises leaves no trace, so that it may be skipped. Shards: `merge` their sums, hand the merged state
    to all (`state_dict`, `load_state_dict`), let each add its Gram matrix, `merge` again.

    Args:
        config: Pathway, layers, layer weights and seed; `affinity` has to be `cosine` and `heads` `merged`. The first
            image shows which layers take part (`layer_choice.LayerChoice`).
        max_width: Bound on the sum of the factors' columns, hence on the Gram matrix (max_width^2 / 2 numbers of 8
            bytes); None keeps everything, which is exact. For the error it makes, see `factors.reduced`.
        device: Where sums and products are made.
        estimates_degrees: True lets the second pass see more images than the first: the degrees of all tokens then
            follow from the sums of the first pass alone, up to a factor that makes the largest eigenvalue of S 1.

    Raises:
        SpectralError: If a setting cannot serve a stream.
    """

    def __init__(
        self,
        config: SpectralConfig,
        max_width: int | None = None,
        device: torch.device | str = "cpu",
        estimates_degrees: bool = False,
    ) -> None:
        if config.affinity != Cosine() or config.heads != "merged":
            raise SpectralError(
                "config",
                expected="affinity='cosine' and heads='merged', whose factors add up in a stream",
                got=f"affinity={config.affinity!r} and heads={config.heads!r}",
                fix=f"Use SpectralConfig({config.pathway!r}, 'cosine')",
            )
        self.config = config
        self.max_width = None if max_width is None else require_positive_int("max_width", max_width)
        self.device = torch.device(device)
        self.estimates_degrees = estimates_degrees
        self._totals: Totals | None = None
        self._columns: tuple[torch.Tensor | None, ...] = ()
        self._weighting: Weighting = "equal"

    @property
    def layers(self) -> tuple[BasisLayer, ...]:
        """The layers, once an image has been seen."""
        return self._totals.layers if self._totals else ()

    @property
    def num_images(self) -> tuple[int, int]:
        """Images that the first and the second pass have seen."""
        return (self._totals.num_summed, self._totals.num_in_gram) if self._totals else (0, 0)

    @property
    def sums_finished(self) -> bool:
        """True once the second pass has begun."""
        return self._totals is not None and self._totals.gram is not None

    def add_sums(self, records: Iterable[AttentionRecord]) -> None:
        """First pass: add one image, or one batch of images of one size.

        Args:
            records: Its layers, in call order.
        """
        with self.adding_sums() as add:
            for record in counted(records):
                add(record)

    def add_gram(self, records: Iterable[AttentionRecord]) -> None:
        """Second pass: add one image or batch that the first pass saw.

        Args:
            records: Its layers, in call order.
        """
        with self.adding_gram() as add:
            for record in counted(records):
                add(record)

    @contextlib.contextmanager
    def adding_sums(self) -> Iterator[Add]:
        """First pass, with layers that arrive one by one, as from a capture callback.

        Yields:
            What to call with every record of one forward pass; the image is added when the block ends without an error.

        Raises:
            SpectralError: If the second pass has begun, or layers are missing, unknown or not finite.
        """
        if self.sums_finished:
            raise SpectralError(
                "records", expected="no more sums once the second pass has begun", got="another image", fix="Start anew"
            )
        arrived: list[_Arrived] = []
        choice = LayerChoice(self.config) if self._totals is None else None
        yield lambda record: self._receive(record, arrived, choice)
        if choice is not None:
            choice.check()
        self._commit_sums(arrived)

    @contextlib.contextmanager
    def adding_gram(self) -> Iterator[Add]:
        """Second pass, with layers that arrive one by one.

        Yields:
            What to call with every record of one forward pass; the image is added when the block ends without an error.

        Raises:
            SpectralError: If the first pass saw no image, or layers are missing or unknown.
        """
        self.finish_sums()
        arrived: list[_Arrived] = []
        yield lambda record: self._receive(record, arrived)
        self._commit_gram(arrived)

    @plain_torch()
    def finish_sums(self) -> None:
        """End the first pass; later calls do nothing.

        Raises:
            SpectralError: If it saw no image.
        """
        self._require_totals().start_gram()

    @plain_torch()
    def merge(self, other: BasisAccumulator) -> None:
        """Add what another shard has seen: its sums in the first pass, its Gram matrix in the second.

        Args:
            other: An accumulator of the same settings and in the same pass; it stays as it is. A shard that saw no
                image may be merged in the first pass.

        Raises:
            SpectralError: If settings, layers or passes differ.
        """
        require_same("other", self._settings(), other._settings())
        if other._totals is None:
            return
        if self._totals is None:
            self._start(other.layers)
        require_same("other", {"layers": self.layers}, {"layers": other.layers})
        self._require_totals().merge(other._totals)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that has been added up.

        Returns:
            `tensors`: the live tensors by name (copy them to keep them). All are sums, so that processes may reduce
            them in place: all after the first pass, those whose names begin with `gram` after the second.
            `description`: settings and layers, ready for JSON.
        """
        description = {**self._settings(), "known_layers": [dataclasses.asdict(layer) for layer in self.layers]}
        return {"tensors": self._totals.tensors() if self._totals else {}, "description": description}

    @plain_torch()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; what was added before is forgotten.

        Args:
            state: `tensors` and `description`.

        Raises:
            SpectralError: If it was made with other settings, the differences named, or its parts do not fit.
        """
        description = dict(state["description"])
        known = [BasisLayer(**layer) for layer in description.pop("known_layers")]
        require_same("state", self._settings(), description)
        if known:
            self._start(known, state["tensors"])
        else:
            self._totals, self._columns = None, ()

    @plain_torch()
    def solve(
        self,
        num_eigenvectors: int,
        seed: int = 0,
        layer_weights: str | Mapping[int, float | int] | Sequence[float | int] | None = None,
        backbone: Mapping[str, Any] | None = None,
        exactly: bool = True,
    ) -> SpectralBasis:
        """Find the leading eigenvectors of what was added; the accumulator stays as it is.

        Args:
            num_eigenvectors: How many, the trivial one among them.
            seed: Seed of the start vectors; what is found does not depend on it beyond 1e-7.
            layer_weights: Other weights than those of the config, as `SpectralConfig` takes them; a layer of weight 0
                takes no part. One Gram matrix serves them all, as long as the layers of each image share one
                grid.
            backbone: What identifies the backbone, for `SpectralBasis.check_backbone`: names with JSON values.
            exactly: False takes all eigenvectors there are where fewer exist than wanted.

        Returns:
            The basis.

        Raises:
            SpectralError: If the passes saw different images, the weights do not fit, or fewer eigenvectors exist and
                `exactly` so many were wanted.
        """
        seed = require_seed(seed)
        totals = self._require_totals()
        chosen = self.config.layer_weights if layer_weights is None else as_weighting(layer_weights)
        weights = final_weights(totals, self._weighting, self._weighting if layer_weights is None else chosen)
        config = dataclasses.replace(self.config, num_eigenvectors=num_eigenvectors, layer_weights=chosen)
        return solve_totals(totals, config, weights, seed, self.max_width, dict(backbone or {}), exactly)

    @plain_torch()
    def _receive(self, record: AttentionRecord, arrived: list[_Arrived], choice: LayerChoice | None = None) -> None:
        """Keep what the pathway compares of one layer, at the width that the basis keeps of it."""
        position = match(self.layers, record, self.config.pathway)
        if position is not None or (choice is not None and choice.weight(record) > 0):
            columns = None if position is None else self._columns[position]
            parts = unit_tokens(record, self.config.pathway)
            tokens = reduced(tuple(part.to(self.device) for part in parts), columns)
            width = tokens[0].shape[2]
            layer = BasisLayer(record.name, record.index, record.timestep, width, width)
            arrived.append(_Arrived(layer, tokens, record.grid.shape))

    @plain_torch()
    def _commit_sums(self, arrived: list[_Arrived]) -> None:
        arrived = _in_order(arrived, self.layers or [one.layer for one in arrived])
        if self._totals is None:
            arrived = self._first_image(arrived)
        images = range(arrived[0].tokens[0].shape[0])
        parts = [[factor(one.tokens, image).sum(0, dtype=torch.float64) for image in images] for one in arrived]
        sums = [torch.stack(part).sum(0) for part in parts]
        num_tokens = [len(images) * one.shape[0] * one.shape[1] for one in arrived]
        self._require_totals().add_sums(sums, num_tokens, len(images))

    @plain_torch()
    def _commit_gram(self, arrived: list[_Arrived]) -> None:
        arrived = _in_order(arrived, self.layers)
        totals = self._require_totals()
        shapes = [one.shape for one in arrived]
        weights = weight_list([layer.index for layer in totals.layers], self._weighting)
        joint = coupling(shapes, weights, self.device)
        signed = [signs * total for signs, total in zip(totals.signs, totals.sums, strict=True)]
        num_nodes = finest([TokenGrid(*shape) for shape in shapes]).num_nodes
        for image in range(arrived[0].tokens[0].shape[0]):
            factors = [
                normalized_factor(factor(one.tokens, image), total, int(num_tokens))
                for one, total, num_tokens in zip(arrived, signed, totals.num_tokens, strict=True)
            ]
            if joint is None:  # Of layers on several grids, the weights are in the mass already.
                totals.add_evidence([one.tokens for one in arrived], factors, image)
            totals.add_gram(factors, shapes, joint, num_nodes)

    def _first_image(self, arrived: list[_Arrived]) -> list[_Arrived]:
        """Return the layers at the width kept, having started the totals with them."""
        kept = kept_dimensions([one.layer.width for one in arrived], self.config.pathway, self.max_width)
        self._start([dataclasses.replace(one.layer, kept=width) for one, width in zip(arrived, kept, strict=True)])
        pairs = zip(arrived, self._columns, strict=True)
        return [dataclasses.replace(one, tokens=reduced(one.tokens, columns)) for one, columns in pairs]

    def _start(self, known: Sequence[BasisLayer], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        has_evidence = self.config.layer_weights == "auto"
        totals = Totals(known, self.config.pathway, self.device, has_evidence, self.estimates_degrees)
        if tensors is not None:
            totals.load(tensors)
        self._totals = totals
        self._weighting = of_known(self.config.layer_weights, [layer.index for layer in known])
        columns = layer_columns(known, self.config.seed)
        self._columns = tuple(None if part is None else part.to(self.device) for part in columns)

    def _require_totals(self) -> Totals:
        if self._totals is None:
            raise SpectralError(
                "dataset", expected="at least one image", got="none in the first pass", fix="Call add_sums first"
            )
        return self._totals

    def _settings(self) -> dict[str, Any]:
        """Return what shards and checkpoints have to share, as JSON gives it back."""
        settings = {**self.config.to_dict(), "max_width": self.max_width, "estimates_degrees": self.estimates_degrees}
        settings.pop("num_eigenvectors")  # Chosen when solving.
        return dict(json.loads(json.dumps(settings)))


@dataclasses.dataclass(frozen=True)
class _Arrived:
    """One layer of an image or a batch, reduced to what the pathway compares.

    Args:
        layer: The layer, of the width that the tokens have.
        tokens: Unit vectors, of the width kept.
        shape: Height and width of the grid.
    """

    layer: BasisLayer
    tokens: UnitTokens
    shape: Shape


def _in_order(arrived: Sequence[_Arrived], layers: Sequence[BasisLayer]) -> list[_Arrived]:
    """Return the layers in the order of a basis.

    Raises:
        SpectralError: If a layer is missing, or came twice, or with other images, or is not finite.
    """
    found = {one.layer.key: one for one in arrived}
    missing = [layer.name for layer in layers if layer.key not in found]
    if missing or len(found) < len(arrived) or len({one.tokens[0].shape[0] for one in arrived}) > 1:
        raise SpectralError(
            "records",
            expected=f"each of {len(layers)} layers once, all with the same images",
            got=f"no {missing[0]}" if missing else f"{len(arrived)} records of {len(found)} layers",
            fix="Give all records of one forward pass and no others",
        )
    # One number that is not finite would spoil the sums of a whole dataset. The host waits for the device once.
    sums = torch.stack([one.tokens[0].sum() + one.tokens[-1].sum() for one in arrived])
    for one, is_finite in zip(arrived, sums.isfinite().cpu().tolist(), strict=True):
        if not is_finite:
            got, fix = f"NaN or infinity in {one.layer.name}", "Leave this image out"
            raise SpectralError("records", expected="finite numbers", got=got, fix=fix)
    return [found[layer.key] for layer in layers]
