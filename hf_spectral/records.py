"""What one attention layer saw: plain tensors, free of any host library."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from jaxtyping import Float
from torch import Tensor

from hf_spectral.config import Pathway, SpectralConfig, resolve_layers
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.grid import TokenGrid
from hf_spectral.layer_weights import is_by_index, relative_weights, weight_list


@dataclasses.dataclass(frozen=True)
class AttentionRecord:
    """Query, key and value of one self-attention layer, patches only, in raster order, float32.

    Args:
        name: Qualified module name, e.g. `encoder.layer.0.attention`.
        index: Position of the layer in call order, from 0.
        query: As the layer compares it: after any normalization and rotation.
        key: As the layer compares it.
        value: As the layer mixes it.
        scale: Factor on the query-key product inside the softmax.
        grid: The map of the nodes; prefix tokens are already dropped, their number is kept for the reader.
        timestep: Diffusion timestep as the denoiser was given it, or None. `SpectralDiffusionPipeline` gives its own,
            from 0 (data) to noise, whatever units the denoiser counts in.
        windowed: True if the layer compares tokens within windows only, so that query-key pairs across windows are
            none that the network ever formed.
        where_refused: Why queries and keys of the layer cannot be compared at all, or None if they can.
        num_text_tokens: Text tokens that attended along with the image and are left out of the record.
        num_layers: Attention layers of the backbone, recorded or not; None if nobody has counted them.
    """

    name: str
    index: int
    query: Float[Tensor, "images heads nodes head_dim"]
    key: Float[Tensor, "images heads nodes head_dim"]
    value: Float[Tensor, "images heads nodes value_dim"]
    scale: float
    grid: TokenGrid
    timestep: float | None = None
    windowed: bool = False
    where_refused: str | None = None
    num_text_tokens: int = 0
    num_layers: int | None = None

    @property
    def num_images(self) -> int:
        """Images in the batch that the record holds."""
        return self.query.shape[0]

    def refusal(self, pathway: Pathway) -> str | None:
        """Return why the layer cannot serve a pathway.

        Args:
            pathway: `"where"` or `"what"`.

        Returns:
            A sentence without a full stop, or None if the layer can serve.
        """
        if pathway == "what":
            return None
        if self.windowed:
            return "it attends within windows: queries and keys of different windows were never compared"
        return self.where_refused

    def image(self, position: int) -> AttentionRecord:
        """Return the record of one image of the batch.

        Args:
            position: Index of the image, from 0.

        Returns:
            A record of one image, views of the same memory.
        """
        rows = slice(position, position + 1)
        return dataclasses.replace(self, query=self.query[rows], key=self.key[rows], value=self.value[rows])


@dataclasses.dataclass(frozen=True)
class SkippedLayer:
    """A layer that attends but gave no record, or takes no part, and why.

    Args:
        name: Qualified module name.
        reason: A sentence without a full stop.
        index: Position of the layer in call order, from 0, where that is known.
    """

    name: str
    reason: str
    index: int | None = None


@dataclasses.dataclass
class Capture:
    """The records of one forward pass, in call order, and the layers that were left out."""

    records: list[AttentionRecord] = dataclasses.field(default_factory=list)
    skipped: list[SkippedLayer] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def __iter__(self) -> Iterator[AttentionRecord]:
        """Iterate over the records in call order."""
        return iter(self.records)


class LayerChoice:
    """The one rule which records of a forward pass take part in a problem, and how much each counts.

    A record takes part if `config.layers` names its layer, the layer can serve `config.pathway`, and its weight is not
    0. Numbers in `config.layer_weights` without indices belong, in ascending order of the index, to the layers that the
    first two conditions leave. All records of a layer, as those of several timesteps, share its weight. Negative
    indices count from the last attention layer of the backbone.

    Records are shown one by one, so that none has to be kept; `check` afterwards.

    Args:
        config: Pathway, layers and layer weights.
    """

    def __init__(self, config: SpectralConfig) -> None:
        self.skipped: list[SkippedLayer] = []
        self._config = config
        self._indices: list[int] = []

    def weight(self, record: AttentionRecord) -> float:
        """Return how much a record counts beside the others.

        Args:
            record: The next one, in call order.

        Returns:
            0 if it takes no part, else a number from 5e-7 to 1; 1 where all count alike or `"auto"` is to tell.

        Raises:
            SpectralError: If `config.layers` names a layer that there is not, or counts from the end where the record
                does not say how many layers there are.
        """
        config = self._config
        if config.layers is not None and record.index not in _wanted(config.layers, record.num_layers):
            return 0.0
        reason = record.refusal(config.pathway)
        if reason is None:
            if record.index not in self._indices:
                self._indices.append(record.index)
            place = self._indices.index(record.index)
            weight = relative_weights(config.layer_weights, self._indices)[place]
            if weight > 0:
                return weight
            reason = "its weight is 0"
        skipped = SkippedLayer(record.name, reason, record.index)
        if skipped not in self.skipped:
            self.skipped.append(skipped)
        return 0.0

    def check(self) -> None:
        """Refuse settings that fit no forward pass of the records shown.

        Raises:
            UnsupportedBackboneError: If no layer can serve the pathway.
            SpectralError: If the layer weights do not fit the layers that take part.
        """
        config = self._config
        if not self._indices:
            reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in self.skipped) or "no layer was given"
            raise UnsupportedBackboneError(
                "pathway",
                expected="a backbone with at least one layer that can serve it",
                got=f"{config.pathway!r} ({reasons})",
                fix="Try pathway='what', or other `layers`" if config.pathway == "where" else "Check `layers`",
            )
        weight_list(self._indices, config.layer_weights)
        is_by_place = not isinstance(config.layer_weights, str) and not is_by_index(config.layer_weights)
        if is_by_place and self._indices != sorted(self._indices):
            raise SpectralError(
                "records",
                expected="layers in call order beside `layer_weights` without indices",
                got=f"layers {', '.join(map(str, self._indices))}",
                fix="Give the records in the order of the forward pass, or weights by layer index",
            )


def taking_part(
    records: Iterable[AttentionRecord], config: SpectralConfig
) -> tuple[list[tuple[AttentionRecord, float]], tuple[SkippedLayer, ...]]:
    """Return the records of a forward pass that take part in a problem: see `LayerChoice`.

    Args:
        records: All of them, in call order.
        config: Pathway, layers and layer weights.

    Returns:
        Each record with how much it counts beside the others, and the layers left out, with reasons.

    Raises:
        SpectralError: If there are none, or the settings do not fit the layers.
    """
    choice = LayerChoice(config)
    weighed = [(record, choice.weight(record)) for record in counted(records)]
    choice.check()
    return [(record, weight) for record, weight in weighed if weight > 0], tuple(choice.skipped)


def counted(records: Iterable[AttentionRecord]) -> list[AttentionRecord]:
    """Let records made by hand say how many layers their backbone has: as many as the largest index tells.

    Args:
        records: All of one forward pass.

    Returns:
        The same records, those of a capture unchanged.
    """
    records = list(records)
    num_layers = max((record.num_layers or record.index + 1 for record in records), default=0)
    return [one if one.num_layers else dataclasses.replace(one, num_layers=num_layers) for one in records]


def _wanted(layers: tuple[int, ...], num_layers: int | None) -> Iterable[int]:
    if num_layers is not None:
        return resolve_layers(layers, num_layers)
    if min(layers) < 0:
        raise SpectralError(
            "layers",
            expected="indices from 0 for records that do not tell how many layers there are",
            got=list(layers),
            fix="Set `num_layers` of the records, or give all of them at once",
        )
    return layers
