"""A tap on `scaled_dot_product_attention`, for layers that call it themselves, in any host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from hf_spectral.families.attention_call import AttentionCall


class AttentionTap(TorchFunctionMode):
    """Shows every scaled dot-product attention of this thread inside the block, and changes none.

    A mode belongs to the thread that entered it; calls in other threads pass unseen.

    Args:
        observe: Receives query, key, value and scale of each call, before it runs.
    """

    def __init__(self, observe: Callable[[AttentionCall], None]) -> None:
        super().__init__()
        self._observe = observe

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
            scale = named.get("scale")
            if scale is None:
                scale = named["query"].shape[-1] ** -0.5
            self._observe(AttentionCall(named["query"], named["key"], named["value"], float(scale)))
        return func(*args, **kwargs)
