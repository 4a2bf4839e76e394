"""What one attention layer saw: plain tensors, free of any host library."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid

Pathway = Literal["where", "what"]
Heads = Literal["merged", "separate"]
UnitTokens = tuple[Float[Tensor, "images nodes kept"], ...]
PATHWAYS: tuple[Pathway, ...] = get_args(Pathway)


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
        windowed: True if the layer compares tokens within windows only, so that the network never compares a query with
            a key of another window.
        where_refused: Why queries and keys of the layer cannot be compared at all, or None if they can.
        num_text_tokens: Text tokens that attended along with the image and are left out of the record.
        num_layers: Attention layers of the backbone, recorded or not; None if nobody has counted them.

    Raises:
        SpectralError: If query, key and value differ in shape or do not fit the grid, or a record made by hand (without
            `num_layers`) holds NaN. Those of a capture are checked when the forward pass ends.
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

    def __post_init__(self) -> None:
        """Check that the tensors fit each other and the grid."""
        shape = (*self.query.shape[:2], self.grid.num_nodes)
        for role in ("query", "key", "value"):
            tensor: Tensor = getattr(self, role)
            width = tensor.shape[-1:] if role == "value" else self.query.shape[-1:]
            if tensor.shape != (*shape, *width):
                fix = "Give (images, heads, nodes, head_dim), the nodes in raster order"
                expected = f"one node for each of {self.grid.height} x {self.grid.width} places, {(*shape, *width)}"
                raise SpectralError(role, expected=expected, got=tuple(tensor.shape), fix=fix)
            if self.num_layers is None and not torch.isfinite(tensor).all():
                raise SpectralError(role, expected="finite numbers", got="NaN or infinity", fix="Leave this layer out")

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


def unit_tokens(record: AttentionRecord, pathway: Pathway, heads: Heads = "merged") -> UnitTokens:
    """Return the vectors a pathway compares, each of unit length (zero vectors stay zero).

    Args:
        record: One layer of one image or of a batch; of one image with heads separate.
        pathway: `what` takes values, `where` queries and keys.
        heads: `"merged"` gives one set of vectors per image, over the full width of all heads; `"separate"` one set per
            head.

    Returns:
        The values, or the queries and the keys.
    """
    tokens: tuple[Tensor, ...] = (record.value,) if pathway == "what" else (record.query, record.key)
    if heads == "separate":
        tokens = tuple(part.transpose(0, 1) for part in tokens)
    return tuple(normalize(part.float().transpose(1, 2).flatten(2), dim=-1) for part in tokens)
