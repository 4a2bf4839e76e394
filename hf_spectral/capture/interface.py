"""The transformers attention interface: show query, key and value of a call, then compute what was configured."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_spectral.errors import UnsupportedBackboneError
from hf_spectral.families.attention_call import AttentionCall
from hf_spectral.restoring import switched, undoing

Observer = Callable[[AttentionCall, nn.Module], None]

# One name per implementation, because masks differ: sdpa wants a boolean mask or none, eager an additive one. Without a
# mask function of the same name transformers drops the mask silently.
_PREFIX = "spectral_capture_"
_DELEGATES = ("sdpa", "eager")

_observers = threading.local()


def check_implementation(config: Any, backbone: str) -> None:
    """Refuse an attention implementation that cannot be delegated to.

    Args:
        config: Configuration that the attention layers read.
        backbone: Name of the model's class, for the message.

    Raises:
        UnsupportedBackboneError: If the implementation is neither `sdpa` nor `eager`.
    """
    implementation = config._attn_implementation
    if implementation not in (*_DELEGATES, *(_PREFIX + name for name in _DELEGATES)):
        raise UnsupportedBackboneError(
            "model",
            expected="the attention implementation 'sdpa' or 'eager'",
            got=f"{backbone} with {implementation!r}",
            fix='Call model.set_attn_implementation("sdpa") first',
        )


@contextlib.contextmanager
def observing(configs: Iterable[Any], observe: Observer) -> Iterator[None]:
    """Show every interface call of this thread inside the block.

    The implementation is stored on the configuration, which all threads share. The first block to come in switches it
    and the last one to leave restores it; other threads compute the same through the delegate meanwhile.

    Args:
        configs: Configurations that the attention layers read, each once.
        observe: Receives what a module attends with, and the module, before the attention is computed.

    Yields:
        Nothing.
    """
    # set_attn_implementation would also switch other towers, and nothing public restores nested values exactly.
    with (
        switched(configs, "_attn_implementation_internal", lambda original: _PREFIX + original),
        undoing(lambda: setattr(_observers, "stack", [one for one in _current_observers() if one is not observe])),
    ):
        _observers.stack = [*_current_observers(), observe]
        yield


def _current_observers() -> list[Observer]:
    return getattr(_observers, "stack", [])


def _delegate(implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        for observe in _current_observers():
            observe(AttentionCall.of(query, key, value, kwargs.get("scaling")), module)
        is_eager = implementation == "eager"
        function = _eager_function(type(module).forward) if is_eager else ALL_ATTENTION_FUNCTIONS[implementation]
        return function(module, query, key, value, attention_mask, **kwargs)

    return attend


@functools.lru_cache(maxsize=1024)
def _eager_function(forward: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the eager function that a forward names as the default of its interface call."""
    original: Any = inspect.unwrap(forward)
    names = [name for name in original.__code__.co_names if name.startswith("eager") and name in original.__globals__]
    return original.__globals__[names[0] if names else "eager_attention_forward"]


for _implementation in _DELEGATES:
    AttentionInterface.register(_PREFIX + _implementation, _delegate(_implementation))
    AttentionMaskInterface.register(_PREFIX + _implementation, ALL_MASK_ATTENTION_FUNCTIONS[_implementation])
