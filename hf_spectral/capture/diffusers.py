"""Capture from diffusers denoisers, by two mechanisms in this order of preference for each attention layer.

1. A tap on `scaled_dot_product_attention`, for the processors that call it, directly or through diffusers' dispatcher:
   what the layer compares, after any normalization and rotation.
2. Hooks on the projections, for the processors that multiply matrices themselves (attention slicing, xformers, linear
   attention), where a layer neither normalizes nor rotates after them. Neither mechanism touches the processors.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_spectral.capture.base import Recorder
from hf_spectral.capture.diffusers_projections import (
    OBSERVED,
    PROJECTIONS,
    attention_from_projections,
    is_attention,
    projected_values,
)
from hf_spectral.capture.diffusers_tokens import DenoiserCall, arrange, only_timestep
from hf_spectral.capture.hooks import AttentionHooks, AttentionLayer, Call, is_compiled
from hf_spectral.capture.sdpa import AttentionTap
from hf_spectral.errors import UnsupportedBackboneError
from hf_spectral.families.attention_call import AttentionCall
from hf_spectral.families.diffusers import DenoiserFamily, family_of
from hf_spectral.restoring import entered

# The backends of diffusers' dispatcher that end in scaled_dot_product_attention.
_VISIBLE_BACKENDS = frozenset({"native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math"})


def check_supported(model: nn.Module) -> None:
    """Refuse a model that cannot be captured, with the reason.

    Args:
        model: The model to check; it is not run.

    Raises:
        UnsupportedBackboneError: If it is no denoiser of a known family, is compiled in place, or attends through a
            kernel that shows no query and key.
    """
    family = family_of(type(model))
    if is_compiled(model):
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


def attention(model: nn.Module) -> tuple[nn.Module, list[AttentionLayer]]:
    """Return what is run and its attention layers.

    Args:
        model: A model that `check_supported` accepts.

    Returns:
        The model, and the layers that see image tokens, in the order of definition.
    """
    return model, _image_layers(model, family_of(type(model)))


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
    family = family_of(type(model))
    hooks = _DenoiserHooks(model, family, _image_layers(model, family), recorder)
    with hooks.installed(), entered(AttentionTap(hooks.see_attention)):
        yield


def _image_layers(model: nn.Module, family: DenoiserFamily) -> list[AttentionLayer]:
    """Return the self-attention modules that see image tokens; cross-attention and text-only layers are none."""
    return [
        AttentionLayer(name, name, module, PROJECTIONS)
        for name, module in model.named_modules()
        if is_attention(module)
        and not getattr(module, "is_cross_attention", False)
        and not (family.text_only is not None and name.startswith(family.text_only))
    ]


def _hidden_attention(model: nn.Module, layer: AttentionLayer, got: str) -> UnsupportedBackboneError:
    return UnsupportedBackboneError(
        "model",
        expected="attention through torch's scaled_dot_product_attention",
        got=f"{got} in {layer.name!r} of {type(model).__name__}, which shows no query and key",
        fix='Call model.set_attention_backend("native"), or load the model again for its own attention processors',
    )


class _DenoiserHooks(AttentionHooks):
    """Reads the layers of a denoiser."""

    def __init__(
        self, model: nn.Module, family: DenoiserFamily, layers: list[AttentionLayer], recorder: Recorder
    ) -> None:
        super().__init__(model, layers, recorder)
        self._family = family
        self._map_size: tuple[int, int] | None = None
        self._image_rotation: Tensor | None = None
        self._timestep: float | None = None
        self._rows = slice(None)
        self._token_map: Callable[[], tuple[int, int]] = lambda: family.token_map(model, self.inputs)

    def begin(self) -> float | None:
        """Take the timestep, and the rotations of the image's positions where they are known in advance."""
        self._map_size = None
        self._token_map = functools.cache(functools.partial(self._family.token_map, self.model, self.inputs))
        mask = self.inputs.get("encoder_attention_mask")
        if isinstance(mask, Tensor):  # Layers count its tokens: on the host, without waiting for a device each time.
            self.inputs["encoder_attention_mask"] = mask.cpu()
        self._timestep = only_timestep(self.inputs.get(self._family.time_argument))
        self._image_rotation = self._family.image_rotation(self.model, self.inputs, None)
        self._rows = slice(None) if self.recorder.steps is None else self._rows_with_prompt()
        return self._timestep

    def children(self, layer: AttentionLayer) -> Iterable[str]:
        """Return the projections and norms that the module has."""
        return (name for name in OBSERVED if isinstance(getattr(layer.module, name, None), nn.Module))

    def further_hooks(self) -> Iterable[Callable[[], Any]]:
        """See the maps that blocks are given, and the rotations that the denoiser computes on its way."""
        for module in self.model.modules():
            if type(module).__name__ == "Transformer2DModel":
                yield functools.partial(module.register_forward_pre_hook, self.mine(self._see_map), with_kwargs=True)
        if (rotating := self._family.rotation_module(self.model)) is not None:
            yield functools.partial(rotating.register_forward_hook, self.mine(self._see_rotations))

    def read(self, call: Call) -> dict[str, Any]:
        """Take the image's tokens out of a layer."""
        name, module = call.layer.name, call.layer.module
        seen = DenoiserCall(
            denoiser=self.model,
            family=self._family,
            path=name,
            module=module,
            attention=call.attended or self._from_projections(call),
            inputs=self.inputs,
            map_size=_map_size(call.args, call.kwargs) or self._map_size,
            token_map=self._token_map,
            values=projected_values(module, call.projected),
            shown=call.args[0] if call.args else call.kwargs.get("hidden_states"),
            projected_from=call.given.get("to_v"),
            rotation=self._family.rotation(call.kwargs),
            image_rotation=self._image_rotation,
        )
        attention, grid, num_text = arrange(seen, self.recorder.require)
        return {
            "attention": attention.apply(lambda tensor: tensor[self._rows]),
            "grid": grid,
            "timestep": self._timestep,
            "where_refused": self._family.where_refused,
            "num_text_tokens": num_text,
        }

    def _rows_with_prompt(self) -> slice:
        """Return the rows of a batch that are not repeated for guidance: there both halves hold the same latents."""
        given = next((self.inputs[name] for name in ("sample", "hidden_states", "x") if name in self.inputs), ())
        half = len(given) // 2
        if not half or len(given) % 2 or not all(map(torch.equal, given[:half], given[half:])):
            return slice(None)
        return slice(None, half) if self._family.prompt_comes_first else slice(half, None)

    def _see_map(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._map_size = _map_size(args, kwargs)

    def _see_rotations(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._image_rotation = self._family.image_rotation(self.model, self.inputs, output)

    def _from_projections(self, call: Call) -> AttentionCall:
        attention = attention_from_projections(self._family, call.layer.module, call.projected)
        if attention is None:
            raise _hidden_attention(self.model, call.layer, type(call.layer.module.processor).__name__)
        return attention


def _map_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
    hidden_states = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden_states, Tensor) or hidden_states.ndim != 4:
        return None
    return hidden_states.shape[-2], hidden_states.shape[-1]
