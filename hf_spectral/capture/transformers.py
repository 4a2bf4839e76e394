"""Capture from transformers backbones, by three mechanisms in this order of preference for each attention layer.

1. The attention interface: what the layer compares, after any rotation.
2. A tap on `scaled_dot_product_attention`, for layers that call it themselves: the same. In families that scale the
   query first, it sees the products of layers that multiply matrices themselves too.
3. Hooks on the projections, for layers that multiply matrices themselves: query and key as projected. (Swin V2 compares
   them by cosine; its layout normalizes them, so its records too hold what the layer compares.)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from hf_spectral.capture import interface
from hf_spectral.capture.hooks import AttentionHooks, AttentionLayer, Call, compiled
from hf_spectral.capture.sdpa import AttentionTap
from hf_spectral.capture.towers import attention_layers, interface_configs, vision_tower
from hf_spectral.errors import refuse_backbone
from hf_spectral.families.attention_call import AttentionCall, LayerSkipped
from hf_spectral.families.transformers import Arranged, TowerCall, family_of
from hf_spectral.restoring import entered

_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "heads")


def arrange(call: TowerCall) -> Arranged:
    """Bring one attention call into the form of a record.

    Args:
        call: The call.

    Returns:
        The arranged call.

    Raises:
        LayerSkipped: If no record can hold the call, or the tokens do not lie as the configuration announces.
        SpectralError: If the images of a batch differ in shape.
    """
    attention = call.attention.with_all_heads()
    lengths = tuple(tensor.shape[-2] for tensor in (attention.query, attention.key, attention.value))
    if len(set(lengths)) > 1:
        raise LayerSkipped(
            f"query, key and value have {lengths[0]}, {lengths[1]} and {lengths[2]} tokens, so they lie on different "
            "grids (pooled queries, reduced keys or cross-attention)"
        )
    return family_of(call.tower).arrange(dataclasses.replace(call, attention=attention))


class TowerHooks(AttentionHooks):
    """Reads the layers of a vision tower."""

    @staticmethod
    def check_supported(model: nn.Module) -> None:
        """Refuse a model without a vision tower, or whose tower shows no queries and keys of a picture."""
        tower: Any = vision_tower(model)
        layers = attention_layers(model, tower)
        family = family_of(tower)
        reason = family.refusal
        if not layers:
            reason = "no self-attention: none of its modules projects queries, keys and values"
        reason = reason or compiled(model) or family.input_refusal(tower)
        if reason is not None:
            reason = reason if tower is model else f"in its {type(tower).__name__}: {reason}"
            refuse_backbone(type(model).__name__, reason)
        for config in interface_configs(layers):
            interface.check_implementation(config, type(model).__name__)

    @staticmethod
    def attention(model: nn.Module) -> tuple[Any, list[AttentionLayer]]:
        """Return the vision tower, and its attention layers."""
        tower = vision_tower(model)
        return tower, attention_layers(model, tower)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the attention interface, and tap the layers that do not call it."""
        family = family_of(self.model)
        tap = AttentionTap(self.see_attention, products=family.scales_query)
        needs_tap = not all(layer.through_interface for layer in self.layers)
        with (
            interface.observing(interface_configs(self.layers), self.see_attention),
            family.whole_picture(self.model),
            entered(tap) if needs_tap else contextlib.nullcontext(),
        ):
            yield

    def begin(self) -> None:
        """Read nothing: a vision tower is told no timestep."""
        return None

    def children(self, layer: AttentionLayer) -> Iterable[str]:
        """Return the projections, of layers that the interface does not show."""
        return () if layer.through_interface else layer.projections

    def further_hooks(self) -> Iterable[Callable[[], Any]]:
        """Install none."""
        return ()

    def read(self, call: Call) -> dict[str, Any]:
        """Bring a layer to one row per image, in raster order."""
        layer = call.layer
        attention = call.attended[0] if call.attended else self._from_projections(call)
        if family_of(self.model).attends_in_parts:
            attention = attention.joined(call.attended[1:])
        arranged = arrange(TowerCall(self.model, layer.path, attention, self.inputs))
        return {"attention": arranged.attention, "grid": arranged.grid, "windowed": arranged.windowed}

    def _from_projections(self, call: Call) -> AttentionCall:
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
            if not family_of(self.model).has_fused_projection:
                raise LayerSkipped("its query, key and value are one projection of unknown order")
            tensors = list(tensors[0].chunk(3, dim=-1))
        query, key, value = (
            tensor.flatten(1, -2).unflatten(-1, (heads, tensor.shape[-1] // heads)).transpose(1, 2)
            for tensor in tensors
        )
        scale = next((getattr(module, name) for name in ("scaling", "scale") if hasattr(module, name)), None)
        return AttentionCall.of(query, key, value, scale if isinstance(scale, float) else None)
