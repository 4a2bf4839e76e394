"""Capture from diffusers denoisers, by two mechanisms in this order of preference for each attention layer.

1. A tap on `scaled_dot_product_attention`, for the processors that call it, directly or through diffusers' dispatcher:
   what the layer compares, after any normalization and rotation.
2. Hooks on the projections, for the processors that multiply matrices themselves (attention slicing, xformers, linear
   attention), where a layer neither normalizes nor rotates after them. Neither mechanism touches the processors.

Each family states where the image tokens stand among the text tokens, which is verified in every forward pass. In a
double-stream block the projection of values sees image tokens only, and values are neither normalized nor rotated: the
rows at the stated place must equal what the projection gave. Where a module is given image and text apart and joins
them itself, the rows at the stated place must be the image's before the projection. Where a layer rotates queries and
keys, the rotations of these rows must be those of the image's positions.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_spectral.capture.base import Recorder
from hf_spectral.capture.hooks import AttentionHooks, AttentionLayer, Call, compiled
from hf_spectral.capture.sdpa import AttentionTap
from hf_spectral.errors import SpectralError, UnsupportedBackboneError, refuse_backbone
from hf_spectral.families.attention_call import AttentionCall, LayerSkipped
from hf_spectral.families.diffusers import family_of
from hf_spectral.grid import TokenGrid
from hf_spectral.restoring import entered

# The backends of diffusers' dispatcher that end in scaled_dot_product_attention.
_VISIBLE_BACKENDS = frozenset({"native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math"})

_PROJECTIONS = ("to_q", "to_k", "to_v")
_FUSED = "to_qkv"
# Linear attention normalizes before it splits heads, so that the norms' outputs are as wide as the projections'.
_NORMS = {"norm_q": "to_q", "norm_k": "to_k"}
_FUSED_WITH_MLP = "to_qkv_mlp_proj"
# Children of an attention module whose outputs are of use.
_OBSERVED = (*_PROJECTIONS, _FUSED, *_NORMS)


class DenoiserHooks(AttentionHooks):
    """Reads the layers of a denoiser."""

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        super().__init__(model, recorder)
        self._family = family_of(type(model))
        self._map_size: tuple[int, int] | None = None
        self._image_rotation: Tensor | None = None
        self._rows = slice(None)
        self._token_map: Callable[[], tuple[int, int]] = lambda: self._family.token_map(model, self.inputs)

    @staticmethod
    def check_supported(model: nn.Module) -> None:
        """Refuse a model of no known family, compiled in place, or with a kernel that shows no query and key."""
        _, layers = DenoiserHooks.attention(model)
        if (reason := compiled(model)) is not None:
            refuse_backbone(type(model).__name__, reason)
        for layer in layers:
            backend = getattr(layer.module.processor, "_attention_backend", None)
            name = getattr(backend, "value", backend)
            if name is not None and name not in _VISIBLE_BACKENDS:
                raise _hidden_attention(model, layer, f"the attention backend {name!r}")

    @staticmethod
    def attention(model: nn.Module) -> tuple[Any, list[AttentionLayer]]:
        """Return the model, and the self-attention layers that see image tokens: no cross-attention, not text alone."""
        text_only = family_of(type(model)).text_only
        return model, [
            AttentionLayer(name, name, module, _PROJECTIONS)
            for name, module in model.named_modules()
            if _is_attention(module)
            and not getattr(module, "is_cross_attention", False)
            and not (text_only is not None and name.startswith(text_only))
        ]

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """Tap `scaled_dot_product_attention`."""
        return entered(AttentionTap(self.see_attention))

    def begin(self) -> float | None:
        """Take the timestep, and the rotations of the image's positions where they are known in advance."""
        self._map_size = None
        self._token_map = functools.cache(functools.partial(self._family.token_map, self.model, self.inputs))
        mask = self.inputs.get("encoder_attention_mask")
        if isinstance(mask, Tensor):  # Layers count its tokens: on the host, without waiting for a device each time.
            self.inputs["encoder_attention_mask"] = mask.cpu()
        self._image_rotation = self._family.image_rotation(self.model, self.inputs, None)
        self._rows = slice(None) if self.recorder.steps is None else self._rows_with_prompt()
        return _only_timestep(self.inputs.get(self._family.time_argument))

    def children(self, layer: AttentionLayer) -> Iterable[str]:
        """Return the projections and norms that the module has."""
        return (name for name in _OBSERVED if isinstance(getattr(layer.module, name, None), nn.Module))

    def further_hooks(self) -> Iterable[Callable[[], Any]]:
        """See the maps that blocks are given, and the rotations that the denoiser computes on its way."""
        for module in self.model.modules():
            if type(module).__name__ == "Transformer2DModel":
                yield functools.partial(module.register_forward_pre_hook, self.mine(self._see_map), with_kwargs=True)
        if (rotating := self._family.rotation_module(self.model)) is not None:
            yield functools.partial(rotating.register_forward_hook, self.mine(self._see_rotations))

    def read(self, call: Call) -> dict[str, Any]:
        """Take the image's tokens out of a layer, in raster order."""
        family, name, module = self._family, call.layer.name, call.layer.module
        attention = call.attended[0] if call.attended else self._from_projections(call)
        tokens = attention.query.shape[-2]
        if tokens != attention.key.shape[-2]:
            raise LayerSkipped("its queries and keys are not of the same tokens")
        height, width = _map_size(call.args, call.kwargs) or self._map_size or self._token_map()
        sees_text, nodes = family.sees_text(name, module), height * width
        num_text = family.num_text_tokens(self.model, self.inputs, name) if sees_text else 0
        if tokens != nodes + num_text:
            raise LayerSkipped(
                f"its {tokens} tokens are not {height} x {width} image tokens and {num_text} text tokens"
            )
        start = num_text if family.text == "first" else 0
        rows = slice(start, start + nodes)
        if sees_text:
            self._verify_place(call, attention.value, rows)
        return {
            "attention": attention.apply(lambda tensor: tensor[self._rows, ..., rows, :]),
            "grid": TokenGrid(height, width, start),
            "where_refused": family.where_refused,
            "num_text_tokens": num_text,
        }

    def _verify_place(self, call: Call, value: Tensor, rows: slice) -> None:
        """Refuse image tokens that are not where the family says: at once by shapes, later by numbers."""
        place = "after" if self._family.text == "first" else "before"

        def require_equal(found: Tensor | None, expected: Tensor | None, got: str) -> None:
            refusal = SpectralError(
                "model",
                expected=f"image tokens {place} the text tokens in {call.layer.name!r}",
                got=got,
                fix="Restore the family's own attention processors, e.g. by loading the model again; if that does not "
                "help, report the model",
            )
            if found is None or expected is None or found.shape != expected.shape:
                raise refusal
            same = (found == expected.to(found.device)).all()
            self.recorder.require(torch.where(same, 0.0, torch.nan), refusal)

        values = _projected_values(call)
        sees_image_alone = values is not None and values.shape[-2] < value.shape[-2]
        if sees_image_alone or getattr(call.layer.module, "added_kv_proj_dim", None) is not None:
            projected = None if values is None else values[..., : rows.stop - rows.start, :]
            require_equal(
                value[..., rows, :], projected, "values that differ from the projection of the image's tokens"
            )
        shown = call.args[0] if call.args else call.kwargs.get("hidden_states")
        joined = call.given.get("to_v")  # What the projection of values was given.
        if isinstance(joined, Tensor) and isinstance(shown, Tensor) and shown.shape[-2] < joined.shape[-2]:
            said = "other tokens than those that the module was given as the image's"
            require_equal(joined[..., rows, :], shown, said)
        if self._family.rotates:
            rotation = self._family.rotation(call.kwargs)
            turned = None if rotation is None else rotation[..., rows, :]
            require_equal(turned, self._image_rotation, "rotations that differ from those of the image's positions")

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
        """Return query, key and value as projected; the layer must not rotate, normalize or join text tokens then."""
        module, projected = call.layer.module, call.projected
        is_linear = self._family.where_refused is not None
        normalizes = any(name in projected for name in _NORMS) and not is_linear
        if self._family.text is not None or normalizes or not all(name in projected for name in _PROJECTIONS):
            raise _hidden_attention(self.model, call.layer, type(module.processor).__name__)
        latest = {**projected, **{_NORMS[name]: projected[name] for name in _NORMS if name in projected}}
        query, key, value = (_split_heads(latest[name], module.heads) for name in _PROJECTIONS)
        if is_linear:
            query, key = query.relu(), key.relu()
        return AttentionCall(query, key, value, float(module.scale))


def _hidden_attention(model: nn.Module, layer: AttentionLayer, got: str) -> UnsupportedBackboneError:
    return UnsupportedBackboneError(
        "model",
        expected="attention through torch's scaled_dot_product_attention",
        got=f"{got} in {layer.name!r} of {type(model).__name__}, which shows no query and key",
        fix='Call model.set_attention_backend("native"), or load the model again for its own attention processors',
    )


def _only_timestep(timestep: Any) -> float | None:
    """Return the timestep of a forward pass, which a record can hold only one of; None if there was none.

    Raises:
        SpectralError: If the images of a batch differ in it.
    """
    values = torch.as_tensor(timestep).flatten().unique().tolist() if timestep is not None else []
    if len(values) > 1:
        raise SpectralError(
            "timestep",
            expected="one timestep for all images of a batch",
            got=values,
            fix="Run the denoiser once per timestep",
        )
    return float(values[0]) if values else None


def _map_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
    hidden_states = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden_states, Tensor) or hidden_states.ndim != 4:
        return None
    return hidden_states.shape[-2], hidden_states.shape[-1]


def _is_attention(module: nn.Module) -> bool:
    """Tell whether a module projects queries, keys and values, each alone or all together."""
    held = {name for name, child in module.named_children() if child is not None}
    return held.issuperset(_PROJECTIONS) or bool(held & {_FUSED, _FUSED_WITH_MLP})


def _projected_values(call: Call) -> Tensor | None:
    """Return the values that the module projected, fused or not, as (images, heads, tokens, head_dim)."""
    values = call.projected[_FUSED].chunk(3, dim=-1)[2] if _FUSED in call.projected else call.projected.get("to_v")
    return None if values is None else _split_heads(values, call.layer.module.heads)


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
