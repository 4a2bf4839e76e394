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

from hf_spectral.capture.base import Attention
from hf_spectral.errors import UnsupportedBackboneError

Observer = Callable[[nn.Module, Attention], None]

# One name an implementation, because masks differ: sdpa wants a boolean mask or none, eager an additive one. Without a
# mask function of the same name transformers drops the mask silently.
_PREFIX = "spectral_capture_"
_DELEGATES = ("sdpa", "eager")

_observers = threading.local()
_lock = threading.Lock()
_switched: dict[int, _Switch] = {}


class _Switch:
    """A configuration that captures have switched, how many hold it, and what it was before."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.original = config._attn_implementation
        self.holders = 0


def uses_interface(module: nn.Module) -> bool:
    """Tell whether a module's forward looks its attention function up in the interface.

    Args:
        module: Any module.

    Returns:
        True if calls of this very class go through the interface.
    """
    return "ALL_ATTENTION_FUNCTIONS" in names_in_forward(type(module).forward)


@functools.lru_cache(maxsize=4096)
def names_in_forward(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the global and attribute names that a forward reads.

    Args:
        forward: The forward function of a module class.

    Returns:
        The names; empty for a forward that is not Python code.
    """
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return frozenset(code.co_names) if code is not None else frozenset()


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
        configs: Configurations that the attention layers read.
        observe: Receives the module and what it attends with, before the attention is computed.

    Yields:
        Nothing.
    """
    held = list({id(config): config for config in configs}.values())
    with _lock:
        for config in held:
            switch = _switched.setdefault(id(config), _Switch(config))
            switch.holders += 1
            # set_attn_implementation would also switch other towers, and nothing public restores nested values exactly.
            config._attn_implementation_internal = _PREFIX + switch.original
    _observers.stack = [*_current_observers(), observe]
    try:
        yield
    finally:
        _observers.stack = [other for other in _current_observers() if other is not observe]
        with _lock:
            for config in held:
                switch = _switched[id(config)]
                switch.holders -= 1
                if not switch.holders:
                    config._attn_implementation_internal = switch.original
                    del _switched[id(config)]


def _current_observers() -> list[Observer]:
    return getattr(_observers, "stack", [])


def _delegate(implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        scale = kwargs.get("scaling")
        for observe in _current_observers():
            observe(module, Attention(query, key, value, query.shape[-1] ** -0.5 if scale is None else float(scale)))
        function = (
            _eager_function(type(module).forward)
            if implementation == "eager"
            else ALL_ATTENTION_FUNCTIONS[implementation]
        )
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
