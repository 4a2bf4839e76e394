"""Find the part of a transformers model that sees pixels, and its attention layers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_spectral.capture.hooks import AttentionLayer
from hf_spectral.errors import refuse_backbone
from hf_spectral.families.transformers import family_of, is_known

_TRIPLES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("to_q", "to_k", "to_v"))
_FUSED = "qkv"


def vision_tower(model: nn.Module) -> nn.Module:
    """Return the module of a model that sees the pixels, and that capture reads.

    Args:
        model: A transformers model, e.g. `CLIPModel` or `ViTForImageClassification`.

    Returns:
        The innermost model that sees pixels, e.g. `model.vision_model`; the model itself if none is inside.

    Raises:
        UnsupportedBackboneError: If the model takes no `pixel_values`.
    """
    if not isinstance(model, PreTrainedModel) and is_known(model):
        return model
    if not _sees_pixels(model):
        refuse_backbone(type(model).__name__, "no vision tower: takes no pixel_values")
    while family_of(model).refusal is None and (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    """Return the model inside that sees the pixels: a child, a backbone deeper inside, or None for the model itself."""
    seeing = [module for module in model.modules() if module is not model and _sees_pixels(module)]
    children = {*model.children()}
    found = [module for module in seeing if module in children] or [module for module in seeing if is_known(module)]
    # A model that cannot be read itself is read, or refused, as the backbone inside it.
    if not found and family_of(model).input_refusal(model) is not None:
        found = seeing
    return found[0] if found else None


def _sees_pixels(module: nn.Module) -> bool:
    if not isinstance(module, PreTrainedModel):
        return False
    names = inspect.signature(type(module).forward).parameters
    return "pixel_values" in names or (is_known(module) and {*family_of(module).inputs} <= {*names})


def attention_layers(model: nn.Module, tower: nn.Module) -> list[AttentionLayer]:
    """Return the attention modules of the tower, in the order of definition.

    Args:
        model: The model that the user gave.
        tower: Its vision tower.

    Returns:
        Modules that call the attention interface or `scaled_dot_product_attention`, or that project queries, keys and
        values.
    """
    names = {module: name for name, module in model.named_modules()}
    part = family_of(tower).part
    layers = []
    for path, module in tower.named_modules():
        read = _names_in_forward(type(module).forward)
        through_interface = "ALL_ATTENTION_FUNCTIONS" in read
        children = dict(module.named_children())
        projections: tuple[str, ...] = next((triple for triple in _TRIPLES if children.keys() >= {*triple}), ())
        # Adapters and quantization put other modules in the place of a linear one.
        if not projections and isinstance(getattr(children.get(_FUSED), "in_features", None), int):
            projections = (_FUSED,)
        calls_sdpa = "scaled_dot_product_attention" in read
        if (through_interface or projections or calls_sdpa) and path.startswith(part):
            layers.append(AttentionLayer(names[module], path, module, projections, through_interface))
    return layers


@functools.lru_cache(maxsize=4096)
def _names_in_forward(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the global and attribute names that a forward reads; none if it is not Python code."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return frozenset(code.co_names) if code is not None else frozenset()


def interface_configs(layers: list[AttentionLayer]) -> list[Any]:
    """Return the configurations that interface layers read their implementation from.

    Args:
        layers: The attention layers.

    Returns:
        Each configuration once.
    """
    configs = (getattr(layer.module, "config", None) for layer in layers if layer.through_interface)
    return list({id(config): config for config in configs if config is not None}.values())
