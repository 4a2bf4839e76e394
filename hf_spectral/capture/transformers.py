"""Capture from transformers backbones, by three mechanisms in this order of preference for each attention layer.

1. The attention interface: what the layer compares, after any rotation.
2. A tap on `scaled_dot_product_attention`, for layers that call it themselves: the same.
3. Hooks on the projections, for layers that multiply matrices themselves: query and key as projected. (Swin V2 compares
   them by cosine; its layout normalizes them, so its records too hold what the layer compares.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hf_spectral.capture import interface, layouts
from hf_spectral.capture.base import Attention, Recorder, hooks_lock
from hf_spectral.capture.masking import unmasked
from hf_spectral.capture.sdpa import AttentionTap
from hf_spectral.capture.towers import AttentionLayer, attention_layers, interface_configs, vision_tower
from hf_spectral.capture.view import LayerSkipped, LayerView
from hf_spectral.errors import SpectralError, UnsupportedBackboneError

_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "heads")

_captured = threading.local()


@dataclasses.dataclass
class _Call:
    """One run of an attention layer, and what the mechanisms saw of it so far."""

    layer: AttentionLayer
    attended: Attention | None = None
    projected: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def check_supported(model: nn.Module) -> None:
    """Refuse a model that cannot be captured, with the reason.

    Args:
        model: The model to check; it is not run.

    Raises:
        UnsupportedBackboneError: If it has no vision tower, no self-attention, attention that no record can hold, or an
            attention implementation that shows no query and key.
    """
    tower: Any = vision_tower(model)
    layers = attention_layers(model, tower)
    reason = layouts.REFUSED.get(tower.config.model_type)
    if reason is None and not layers:
        reason = "no self-attention: none of its modules projects queries, keys and values"
    # A graph compiled earlier does not see hooks that come later. torch has no public sign of Module.compile().
    if reason is None and any(module._compiled_call_impl is not None for module in model.modules()):
        reason = "compiled in place by model.compile(); load it again and capture it uncompiled"
    if reason is not None:
        raise UnsupportedBackboneError(
            "model",
            expected="a backbone whose self-attention layers show query, key and value on one grid",
            got=f"{type(model).__name__} ({reason})",
            fix="Choose another backbone, e.g. facebook/dinov2-small",
        )
    for config in interface_configs(layers):
        interface.check_implementation(config, type(model).__name__)


@contextlib.contextmanager
def recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Hand every attention layer that this thread runs inside the block to a recorder.

    Args:
        model: A model that `check_supported` accepts.
        recorder: Receives the layers.

    Yields:
        Nothing.

    Raises:
        SpectralError: If this thread captures the model already.
    """
    tower = vision_tower(model)
    towers: list[nn.Module] = getattr(_captured, "towers", [])
    if any(tower is other for other in towers):
        raise SpectralError(
            "model",
            expected="a model that this thread does not capture already",
            got=f"{type(model).__name__} inside another capture_attention of it",
            fix="Use the records of the outer block, or leave it first",
        )
    layers = attention_layers(model, tower)
    recorder.expect(len(layers))
    watch = _Watch(tower, layers, recorder)
    _captured.towers = [*towers, tower]
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(interface.observing(interface_configs(layers), watch.see_interface))
            stack.enter_context(unmasked(tower))
            stack.enter_context(watch.hooks())
            if not all(layer.through_interface for layer in layers):
                stack.enter_context(AttentionTap(watch.see_tap))
            yield
    finally:
        _captured.towers = towers


class _Watch:
    """Follows the forward passes of one thread through a tower."""

    def __init__(self, tower: nn.Module, layers: list[AttentionLayer], recorder: Recorder) -> None:
        self._tower: Any = tower
        self._layers = layers
        self._recorder = recorder
        self._thread = threading.get_ident()
        self._calls: list[_Call] = []
        self._inputs: dict[str, Any] = {}

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Install the hooks for the length of the block.

        Yields:
            Nothing.
        """
        with contextlib.ExitStack() as handles:
            with hooks_lock:
                self._install(handles)
            yield

    def _install(self, handles: contextlib.ExitStack) -> None:
        def keep(handle: Any) -> None:
            handles.callback(handle.remove)

        keep(self._tower.register_forward_pre_hook(self._start_forward, with_kwargs=True))
        keep(self._tower.register_forward_hook(self._end_forward))
        for layer in self._layers:
            keep(layer.module.register_forward_pre_hook(functools.partial(self._start_layer, layer)))
            keep(layer.module.register_forward_hook(functools.partial(self._end_layer, layer), always_call=True))
            if not layer.through_interface:
                for projection in layer.projections:
                    child = layer.module.get_submodule(projection)
                    keep(child.register_forward_hook(functools.partial(self._see_projection, layer, projection)))

    def _elsewhere(self) -> bool:
        """Return True in any thread but the recorded one: hooks fire in every thread that runs the model."""
        return threading.get_ident() != self._thread

    def _start_forward(self, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        # Another thread may meet this hook before its registration is complete, and then passes no kwargs.
        if self._elsewhere():
            return
        self._calls.clear()
        signature = inspect.signature(type(tower).forward)
        # A wrong call is left to the forward itself, which says more about it.
        with contextlib.suppress(TypeError):
            self._inputs = dict(signature.bind(tower, *args, **(kwargs or {})).arguments)
        self._recorder.start_forward()

    def _end_forward(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._elsewhere():
            self._inputs = {}
            self._recorder.end_forward()

    def _start_layer(self, layer: AttentionLayer, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._elsewhere():
            self._calls.append(_Call(layer))

    def _end_layer(self, layer: AttentionLayer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._elsewhere() or not self._calls or self._calls[-1].layer is not layer:
            return
        call = self._calls.pop()
        # torch calls this hook after an exception too, without an output.
        if output is None:
            return
        index = self._recorder.next_layer()
        if index is None:
            return
        try:
            attention = call.attended or self._from_projections(call)
            arranged = layouts.arrange(LayerView(self._tower, layer.path, attention, self._inputs))
        except LayerSkipped as reason:
            self._recorder.skip(layer.name, str(reason))
        else:
            self._recorder.add(layer.name, index, arranged.attention, arranged.grid, windowed=arranged.windowed)

    def see_interface(self, module: nn.Module, attention: Attention) -> None:
        """Note what a module hands to the attention interface.

        Args:
            module: The attention module.
            attention: What it attends with.
        """
        if self._calls and self._calls[-1].layer.module is module:
            self._calls[-1].attended = attention

    def see_tap(self, attention: Attention) -> None:
        """Note what reaches `scaled_dot_product_attention`, unless the layer was seen at the interface.

        Args:
            attention: What the layer attends with.
        """
        if self._calls and self._calls[-1].attended is None:
            self._calls[-1].attended = attention

    def _see_projection(
        self, layer: AttentionLayer, projection: str, module: nn.Module, args: tuple[Any, ...], output: Any
    ) -> None:
        if not self._elsewhere() and self._calls and self._calls[-1].layer is layer:
            self._calls[-1].projected[projection] = output

    def _from_projections(self, call: _Call) -> Attention:
        """Return what the projections gave, split into heads.

        Raises:
            LayerSkipped: If the layer has no projections that can be split safely.
        """
        module = call.layer.module
        tensors = [call.projected[name] for name in call.layer.projections if name in call.projected]
        heads = next((getattr(module, name) for name in _HEAD_COUNTS if hasattr(module, name)), None)
        if not tensors or len(tensors) != len(call.layer.projections) or not isinstance(heads, int):
            raise LayerSkipped("it computes attention in a way that shows no query, key and value")
        if len(tensors) == 1:
            if self._tower.config.model_type not in layouts.FUSED_FAMILIES:
                raise LayerSkipped("its query, key and value are one projection of unknown order")
            tensors = list(tensors[0].chunk(3, dim=-1))
        query, key, value = (
            tensor.flatten(1, -2).unflatten(-1, (heads, tensor.shape[-1] // heads)).transpose(1, 2)
            for tensor in tensors
        )
        scale = next((getattr(module, name) for name in ("scaling", "scale") if hasattr(module, name)), None)
        return Attention(query, key, value, scale if isinstance(scale, float) else query.shape[-1] ** -0.5)
