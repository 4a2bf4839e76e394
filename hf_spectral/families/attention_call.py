"""One attention call as a layer hands it over, and the sign that no record can hold it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor


class LayerSkipped(Exception):
    """Raised when a layer cannot be represented as an `AttentionRecord`; the message says why."""


@dataclasses.dataclass(frozen=True)
class Attention:
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

    def apply(self, transform: Callable[[Tensor], Tensor]) -> Attention:
        """Return the attention with query, key and value transformed alike.

        Args:
            transform: Takes and returns one tensor.

        Returns:
            A new attention with the same scale.
        """
        return Attention(transform(self.query), transform(self.key), transform(self.value), self.scale)
