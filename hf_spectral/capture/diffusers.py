"""Capture from diffusers denoisers, by two mechanisms in this order of preference for each attention layer.

1. A tap on `scaled_dot_product_attention`, for the processors that call it, directly or through diffusers' dispatcher:
   what the layer compares, after any normalization and rotation.
2. Hooks on the projections, for the processors that multiply matrices themselves (attention slicing, xformers, linear
   attention), where a layer neither normalizes nor rotates after them. Neither mechanism touches the processors.
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

from hf_spectral.capture.base import Attention, Recorder, hooks_lock
from hf_spectral.capture.diffusers_layouts import FAMILIES, DenoiserView, Family, arrange, family_of, only_timestep
from hf_spectral.capture.diffusers_projections import (
    OBSERVED,
    PROJECTIONS,
    attention_from_projections,
    projected_values,
)
from hf_spectral.capture.sdpa import AttentionTap
from hf_spectral.capture.view import LayerSkipped
from hf_spectral.errors import SpectralError, UnsupportedBackboneError

# The backends of diffusers' dispatcher that end in scaled_dot_product_attention.
_VISIBLE_BACKENDS = frozenset({"native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math"})

_captured = threading.local()


@dataclasses.dataclass(frozen=True)
class _Layer:
    name: str
    module: Any


@dataclasses.dataclass
class _Call:
    """One run of an attention layer, and what was seen of it so far."""

    layer: _Layer
    map_size: tuple[int, int] | None
    rotation: Tensor | None
    attended: Attention | None = None
    projected: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def check_supported(model: nn.Module) -> None:
    """Refuse a model that cannot be captured, with the reason.

    Args:
        model: The model to check; it is not run.

    Raises:
        UnsupportedBackboneError: If it is no denoiser of a known family, is compiled in place, or attends through a
            kernel that shows no query and key.
    """
    family = family_of(model)
    if family is None:
        raise UnsupportedBackboneError(
            "model",
            expected=f"a denoiser, one of {', '.join(FAMILIES)}",
            got=type(model).__name__,
            fix="Give the `unet` or `transformer` of a pipeline of one of these families",
        )
    # A graph compiled earlier does not see hooks that come later. torch has no public sign of Module.compile().
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedBackboneError(
            "model",
            expected="a denoiser that is not compiled",
            got=f"{type(model).__name__} compiled in place by model.compile()",
            fix="Load it again and capture it uncompiled",
        )
    for layer in _image_layers(model, family):
        backend = getattr(layer.module.processor, "_attention_backend", None)
        name = getattr(backend, "value", backend)
        if name is not None and name not in _VISIBLE_BACKENDS:
            refusal = _hidden_attention(model, layer, f"the attention backend {name!r}")
            raise refusal


@contextlib.contextmanager
def recording(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Hand every image self-attention layer that this thread runs inside the block to a recorder.

    Args:
        model: A model that `check_supported` accepts.
        recorder: Receives the layers.

    Yields:
        Nothing.

    Raises:
        SpectralError: If this thread captures the model already.
    """
    family = family_of(model)
    assert family is not None  # check_supported has seen to it
    models: list[nn.Module] = getattr(_captured, "models", [])
    if any(model is other for other in models):
        raise SpectralError(
            "model",
            expected="a model that this thread does not capture already",
            got=f"{type(model).__name__} inside another capture_attention of it",
            fix="Use the records of the outer block, or leave it first",
        )
    layers = _image_layers(model, family)
    recorder.expect(len(layers))
    watch = _Watch(model, family, layers, recorder)
    _captured.models = [*models, model]
    try:
        with watch.hooks(), AttentionTap(watch.see_tap):
            yield
    finally:
        _captured.models = models


def _image_layers(model: nn.Module, family: Family) -> list[_Layer]:
    """Return the self-attention modules that see image tokens; cross-attention and text-only layers are none."""
    return [
        _Layer(name, module)
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, projection, None), nn.Module) for projection in PROJECTIONS)
        and not getattr(module, "is_cross_attention", False)
        and not (family.text_only is not None and name.startswith(family.text_only))
    ]


def _hidden_attention(model: nn.Module, layer: _Layer, got: str) -> UnsupportedBackboneError:
    return UnsupportedBackboneError(
        "model",
        expected="attention through torch's scaled_dot_product_attention",
        got=f"{got} in {layer.name!r} of {type(model).__name__}, which shows no query and key",
        fix='Call model.set_attention_backend("native"), or load the model again for its own attention processors',
    )


class _Watch:
    """Follows the forward passes of one thread through a denoiser."""

    def __init__(self, model: nn.Module, family: Family, layers: list[_Layer], recorder: Recorder) -> None:
        self._model = model
        self._family = family
        self._layers = layers
        self._recorder = recorder
        self._thread = threading.get_ident()
        self._calls: list[_Call] = []
        self._inputs: dict[str, Any] = {}
        self._map_size: tuple[int, int] | None = None
        self._image_rotation: Tensor | None = None
        self._timestep: float | None = None

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

        keep(self._model.register_forward_pre_hook(self._start_forward, with_kwargs=True))
        keep(self._model.register_forward_hook(self._end_forward))
        for module in self._model.modules():
            if type(module).__name__ == "Transformer2DModel":  # A block of a UNet, which is given a map.
                keep(module.register_forward_pre_hook(self._see_map, with_kwargs=True))
        if (embedder := getattr(self._model, "rope_embedder", None)) is not None:
            keep(embedder.register_forward_hook(self._see_rotations))
        for layer in self._layers:
            start = functools.partial(self._start_layer, layer)
            keep(layer.module.register_forward_pre_hook(start, with_kwargs=True))
            keep(layer.module.register_forward_hook(functools.partial(self._end_layer, layer), always_call=True))
            for name in OBSERVED:
                if isinstance(child := getattr(layer.module, name, None), nn.Module):
                    keep(child.register_forward_hook(functools.partial(self._see_projection, layer, name)))

    def _elsewhere(self) -> bool:
        """Return True in any thread but the recorded one: hooks fire in every thread that runs the model."""
        return threading.get_ident() != self._thread

    # Another thread may meet a hook before its registration is complete, and then passes no kwargs.

    def _start_forward(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if self._elsewhere():
            return
        self._calls.clear()
        self._inputs = {}
        # A wrong call is left to the forward itself, which says more about it.
        with contextlib.suppress(TypeError):
            bound = inspect.signature(type(model).forward).bind(model, *args, **(kwargs or {}))
            self._inputs = dict(bound.arguments)
        self._map_size = self._image_rotation = None
        self._timestep = only_timestep(self._inputs.get("timestep"))
        if isinstance(positions := self._inputs.get("img_ids"), Tensor):
            self._image_rotation = model.pos_embed(positions[0] if positions.ndim == 3 else positions)[0]
        self._recorder.start_forward()

    def _end_forward(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._elsewhere():
            self._inputs = {}
            self._image_rotation = None
            self._recorder.end_forward()

    def _see_map(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if not self._elsewhere():
            self._map_size = _map_size(args, kwargs)

    def _see_rotations(self, embedder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._elsewhere():
            self._image_rotation = output[2]  # After the hidden states and the rotations of the captions.

    def _start_layer(
        self, layer: _Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        if self._elsewhere():
            return
        rotation = (kwargs or {}).get("image_rotary_emb")
        rotation = rotation[0] if isinstance(rotation, tuple) else rotation
        self._calls.append(_Call(layer, _map_size(args, kwargs) or self._map_size, rotation))

    def _end_layer(self, layer: _Layer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._elsewhere() or not self._calls or self._calls[-1].layer is not layer:
            return
        call = self._calls.pop()
        # torch calls this hook after an exception too, without an output.
        if output is None or (index := self._recorder.next_layer()) is None:
            return
        view = DenoiserView(
            denoiser=self._model,
            family=self._family,
            path=layer.name,
            module=layer.module,
            attention=call.attended or self._attention_of(call),
            inputs=self._inputs,
            map_size=call.map_size,
            values=projected_values(layer.module, call.projected),
            rotation=call.rotation,
            image_rotation=self._image_rotation,
        )
        try:
            attention, grid, num_text = arrange(view)
        except LayerSkipped as reason:
            self._recorder.skip(layer.name, str(reason))
        else:
            self._recorder.add(
                layer.name,
                index,
                attention,
                grid,
                timestep=self._timestep,
                where_refused=self._family.where_refused,
                num_text_tokens=num_text,
            )

    def _attention_of(self, call: _Call) -> Attention:
        attention = attention_from_projections(self._family, call.layer.module, call.projected)
        if attention is None:
            raise _hidden_attention(self._model, call.layer, type(call.layer.module.processor).__name__)
        return attention

    def see_tap(self, attention: Attention) -> None:
        """Note the first attention of a layer; further ones (image prompts) are no self-attention.

        Args:
            attention: What the layer attends with.
        """
        if self._calls and self._calls[-1].attended is None:
            self._calls[-1].attended = attention

    def _see_projection(
        self, layer: _Layer, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        if not self._elsewhere() and self._calls and self._calls[-1].layer is layer:
            self._calls[-1].projected[name] = output


def _map_size(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> tuple[int, int] | None:
    hidden_states = args[0] if args else (kwargs or {}).get("hidden_states")
    if not isinstance(hidden_states, Tensor) or hidden_states.ndim != 4:
        return None
    return hidden_states.shape[-2], hidden_states.shape[-1]
