"""The one rule which layers of a backbone take part in a problem, and how much each counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from hf_spectral.checks import is_int
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.layer_weights import is_by_index, relative_weights, weight_list
from hf_spectral.records import AttentionRecord, SkippedLayer


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
        """Return the weight of a record relative to the others.

        Args:
            record: The next one, in call order.

        Returns:
            0 if it takes no part, else a number from 5e-7 to 1; 1 if all weights are equal or `"auto"`.

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
        """Check that the settings fit the records shown.

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
    """Return the records of one image that take part in a problem: see `LayerChoice`.

    Args:
        records: All of a forward pass, in call order.
        config: Pathway, layers and layer weights.

    Returns:
        Each record with its weight relative to the others, and the layers left out, with reasons.

    Raises:
        SpectralError: If there are none, they hold several images, or the settings do not fit the layers.
    """
    choice = LayerChoice(config)
    weighed = [(record, choice.weight(record)) for record in counted(records)]
    choice.check()
    chosen = [(record, weight) for record, weight in weighed if weight > 0]
    num_images = max(record.num_images for record, _ in chosen)
    if num_images != 1:
        raise SpectralError(
            "records", expected="layers of one image", got=f"{num_images} images", fix="Use record.image(position)"
        )
    return chosen, tuple(choice.skipped)


def counted(records: Iterable[AttentionRecord]) -> list[AttentionRecord]:
    """Set the number of layers of records made by hand, from the largest index.

    Args:
        records: All of one forward pass.

    Returns:
        The same records, those of a capture unchanged.
    """
    records = list(records)
    num_layers = max((record.num_layers or record.index + 1 for record in records), default=0)
    return [one if one.num_layers else dataclasses.replace(one, num_layers=num_layers) for one in records]


def resolve_layers(layers: Iterable[int], num_layers: int) -> frozenset[int]:
    """Turn layer indices, negative ones among them, into positions from 0.

    Args:
        layers: Indices from `-num_layers` to `num_layers - 1`.
        num_layers: Attention layers of the backbone.

    Returns:
        The positions.

    Raises:
        SpectralError: If an index is no integer of the range, or there is none.
    """
    chosen = tuple(layers) if isinstance(layers, Iterable) else ()
    outside = [index for index in chosen if not is_int(index) or not -num_layers <= index < num_layers]
    if outside or not chosen:
        raise SpectralError(
            "layers",
            expected=f"indices from {-num_layers} to {num_layers - 1} for {num_layers} attention layers, at least one",
            got=outside or repr(layers),
            fix="Leave `layers` out to use all of them",
        )
    return frozenset(int(index) % num_layers for index in chosen)


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
