"""One attention call of a layer, and the exception for a call that no record can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid


class LayerSkipped(Exception):
    """Raised when a layer cannot be represented as an `AttentionRecord`; the message says why."""


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """Query, key and value of one attention call.

    Args:
        query: `(rows, heads, tokens, head_dim)`; a row is an image, or a window of an image.
        key: Same form as `query`.
        value: Same form as `query`; its last size may differ.
        scale: Factor on the query-key product inside the softmax.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> AttentionCall:
        """Return the attention with the scale that was given, or else with that of torch, 1 / sqrt(head_dim).

        Args:
            query: As above.
            key: As above.
            value: As above.
            scale: A factor, or None.
        """
        return cls(query, key, value, query.shape[-1] ** -0.5 if scale is None else float(scale))

    def apply(self, transform: Callable[[Tensor], Tensor]) -> AttentionCall:
        """Return the attention with query, key and value each transformed.

        Args:
            transform: Takes and returns one tensor.

        Returns:
            A new attention with the same scale.
        """
        return AttentionCall(transform(self.query), transform(self.key), transform(self.value), self.scale)

    def joined(self, others: Sequence[AttentionCall]) -> AttentionCall:
        """Return the attention over all tokens of a layer that attends in parts.

        Args:
            others: The other parts, in order.
        """
        parts = (self, *others)
        query, key, value = (torch.cat([getattr(part, n) for part in parts], dim=-2) for n in ("query", "key", "value"))
        return AttentionCall(query, key, value, self.scale)

    def with_all_heads(self) -> AttentionCall:
        """Return the attention with one key and value per query head, also if heads share them (grouped queries)."""
        groups = self.query.shape[1] // self.key.shape[1]
        if groups == 1:
            return self
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (self.key, self.value))
        return dataclasses.replace(self, key=key, value=value)

    def on_grid(self, grid: TokenGrid) -> AttentionCall:
        """Return the patches among the tokens: those after the prefix.

        Args:
            grid: Where prefix tokens and patches, in raster order, should lie.

        Returns:
            The attention of the patches.

        Raises:
            LayerSkipped: If the tokens are not so many as the grid says.
        """
        try:
            return self.apply(grid.drop_prefix)
        except SpectralError as error:
            raise LayerSkipped(str(error).removesuffix(".")) from error
