"""A tap on `scaled_dot_product_attention`, for layers that call it themselves, in any host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_spectral.families.attention_call import AttentionCall

_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class AttentionTap(TorchFunctionMode):
    """Shows every scaled dot-product attention of this thread inside the block, and changes none.

    A mode belongs to the thread that entered it; calls in other threads pass unseen.

    Args:
        observe: Receives query, key, value and scale of each call, before it runs.
        products: True to show two products of matrices with a softmax between them as well; the scale is then 1, as
            the query holds it.
    """

    def __init__(self, observe: Callable[[AttentionCall], None], *, products: bool = False) -> None:
        super().__init__()
        self._observe, self._products = observe, products
        self._last: tuple[Tensor, Tensor, torch.Size] | None = None  # Query, transposed key, shape of their product.

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Show the call if it is an attention, then run it.

        Args:
            func: The function that torch is about to run.
            types: Types that override it.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            What the function returns.
        """
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self._observe(AttentionCall.of(named["query"], named["key"], named["value"], named.get("scale")))
        found = func(*args, **kwargs)
        if self._products and func in _PRODUCTS and found.ndim >= 4:
            left, right = args
            if self._last is not None and left.shape == self._last[2]:
                query, key = self._last[:2]
                self._observe(AttentionCall(query, key.transpose(-2, -1), right, 1.0))
                self._last = None
            else:
                self._last = left, right, found.shape
        return found
