"""What the projections of a diffusers attention module tell, where its attention itself cannot be seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_spectral.families.attention_call import AttentionCall
from hf_spectral.families.diffusers import DenoiserFamily

PROJECTIONS = ("to_q", "to_k", "to_v")
_FUSED = "to_qkv"
# Linear attention normalizes before it splits heads, so that the norms' outputs are as wide as the projections'.
_NORMS = {"norm_q": "to_q", "norm_k": "to_k"}
_FUSED_WITH_MLP = "to_qkv_mlp_proj"
# Children of an attention module whose outputs are of use.
OBSERVED = (*PROJECTIONS, _FUSED, *_NORMS)


def is_attention(module: Any) -> bool:
    """Tell whether a module attends: it projects queries, keys and values, each alone or all together.

    Args:
        module: A module of a denoiser.

    Returns:
        True if it does.
    """
    held = {name for name, child in module.named_children() if child is not None}
    return held.issuperset(PROJECTIONS) or bool(held & {_FUSED, _FUSED_WITH_MLP})


def attention_from_projections(
    family: DenoiserFamily, module: Any, projected: Mapping[str, Tensor]
) -> AttentionCall | None:
    """Return query, key and value as projected, if that is what the layer compares.

    Args:
        family: The denoiser's family.
        module: The attention module.
        projected: Outputs of its children, by name.

    Returns:
        The attention, or None if the layer rotates, normalizes or joins text tokens after its projections.
    """
    is_linear = family.where_refused is not None
    normalizes = any(name in projected for name in _NORMS) and not is_linear
    if family.text is not None or normalizes or not all(name in projected for name in PROJECTIONS):
        return None
    latest = {**projected, **{_NORMS[name]: projected[name] for name in _NORMS if name in projected}}
    query, key, value = (_split_heads(latest[name], module.heads) for name in PROJECTIONS)
    if is_linear:
        query, key = query.relu(), key.relu()
    return AttentionCall(query, key, value, float(module.scale))


def projected_values(module: Any, projected: Mapping[str, Tensor]) -> Tensor | None:
    """Return the values that the module projected, fused or not.

    Args:
        module: The attention module.
        projected: Outputs of its children, by name.

    Returns:
        `(images, heads, tokens, head_dim)`, or None if its projection was not called.
    """
    values = projected[_FUSED].chunk(3, dim=-1)[2] if _FUSED in projected else projected.get("to_v")
    return None if values is None else _split_heads(values, module.heads)


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
