"""Token layouts: from the tokens that a layer sees to one row an image, patches only, in raster order.

One function a family, found by `config.model_type`. Each verifies what the configuration announces against the number
of tokens that came, so that a wrong layout is a refusal and never a scrambled map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from hf_spectral.capture import windows
from hf_spectral.capture.base import Attention
from hf_spectral.capture.view import Arranged, LayerSkipped, LayerView, on_grid, patch_map
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid

Layout = Callable[[LayerView], Arranged]

# A backbone that no layout is written for: so many tokens before the patches are taken for prefix tokens.
_MAX_UNKNOWN_PREFIX = 16


def arrange(view: LayerView) -> Arranged:
    """Bring one attention call into the form of a record.

    Args:
        view: The call.

    Returns:
        The arranged call.

    Raises:
        LayerSkipped: If no record can hold the call, or the tokens do not lie as the configuration announces.
        SpectralError: If the images of a batch differ in shape.
    """
    attention = _with_all_heads(view.attention)
    lengths = tuple(tensor.shape[-2] for tensor in (attention.query, attention.key, attention.value))
    if len(set(lengths)) > 1:
        raise LayerSkipped(
            f"query, key and value have {lengths[0]}, {lengths[1]} and {lengths[2]} tokens, so they lie on different "
            "grids (pooled queries, reduced keys or cross-attention)"
        )
    layout = LAYOUTS.get(view.config.model_type, _unknown)
    return layout(dataclasses.replace(view, attention=attention))


def _with_all_heads(attention: Attention) -> Attention:
    """Return the attention with keys and values repeated that several query heads share (grouped queries)."""
    groups = attention.query.shape[1] // attention.key.shape[1]
    if groups == 1:
        return attention
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (attention.key, attention.value))
    return dataclasses.replace(attention, key=key, value=value)


def _plain(num_prefix: Callable[[Any], int], num_suffix: Callable[[Any], int] = lambda config: 0) -> Layout:
    """Return the layout of prefix tokens, patches in raster order, suffix tokens."""

    def arrange_plain(view: LayerView) -> Arranged:
        grid = TokenGrid(*patch_map(view), num_prefix(view.config))
        end = view.num_tokens - num_suffix(view.config)
        return Arranged(on_grid(view.attention.apply(lambda tokens: tokens[..., :end, :]), grid), grid)

    return arrange_plain


def _naflex(view: LayerView) -> Arranged:
    """Return SigLIP 2 NaFlex arranged: patches of an image's own grid, then padding.

    Raises:
        LayerSkipped: If there are fewer tokens than patches.
        SpectralError: If the images of the batch have different shapes.
    """
    shapes = view.inputs["spatial_shapes"]
    if (shapes != shapes[0]).any():
        raise SpectralError(
            "spatial_shapes",
            expected="images of one shape in a batch",
            got=str(shapes.tolist()),
            fix="Analyze images of different shapes one at a time",
        )
    grid = TokenGrid(int(shapes[0, 0]), int(shapes[0, 1]))
    if grid.num_nodes > view.num_tokens:
        raise LayerSkipped(f"it sees {view.num_tokens} tokens of {grid.num_nodes} that spatial_shapes announces")
    return Arranged(view.attention.apply(lambda tokens: tokens[..., : grid.num_nodes, :]), grid)


def _unknown(view: LayerView) -> Arranged:
    """Return a backbone without a layout of its own arranged: plain, if the numbers allow it.

    Raises:
        LayerSkipped: If the tokens do not lie as in a plain backbone.
    """
    if getattr(view.config, "patch_size", None) is None:
        raise LayerSkipped(f"no token layout is known for {view.config.model_type!r}, which has no patch size")
    height, width = patch_map(view)
    num_prefix = view.num_tokens - height * width
    if not 0 <= num_prefix <= _MAX_UNKNOWN_PREFIX or view.attention.query.shape[0] != view.pixels.shape[0]:
        raise LayerSkipped(f"{view.num_tokens} tokens do not hold {height} x {width} patches in a known order")
    grid = TokenGrid(height, width, num_prefix)
    return Arranged(on_grid(view.attention, grid), grid)


def _fixed(num_prefix: int) -> Layout:
    return _plain(lambda config: num_prefix)


def _with_registers(config: Any) -> int:
    return 1 + config.num_register_tokens


LAYOUTS: dict[str, Layout] = {
    "aimv2_vision_model": _fixed(0),
    "beit": _fixed(1),
    "blip_vision_model": _fixed(1),
    "clip_vision_model": _fixed(1),
    "data2vec-vision": _fixed(1),
    "deit": _fixed(2),
    "dinov2": _fixed(1),
    "dinov2_with_registers": _plain(_with_registers),
    "dinov3_vit": _plain(_with_registers),
    "donut-swin": windows.swin,
    "hiera": windows.hiera,
    "ijepa": _fixed(0),
    "pixio": _plain(lambda config: config.n_cls_tokens),
    "radio": _plain(lambda config: config.num_summary_tokens),
    "sam_vision_model": windows.sam,
    "siglip2_vision_model": _naflex,
    "siglip_vision_model": _fixed(0),
    "swin": windows.swin,
    "swinv2": windows.swinv2,
    "vit": _fixed(1),
    "vit_mae": _fixed(1),
    "vit_msn": _fixed(1),
    "yolos": _plain(lambda config: 1, lambda config: config.num_detection_tokens),
}

# Families whose fused projection is known to hold (3, heads, head_dim), in this order.
FUSED_FAMILIES = frozenset({"blip_vision_model", "hiera", "sam_vision_model", "vitdet"})

# Families that hold attention, but none that a record can describe.
REFUSED: dict[str, str] = dict.fromkeys(
    ("glpn", "pvt", "pvt_v2", "segformer"),
    "its keys are spatially reduced, so that query and key lie on different grids",
)
