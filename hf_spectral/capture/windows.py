"""Backbones that attend within windows: put the tokens back on the map."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_spectral.capture.base import Attention
from hf_spectral.capture.view import Arranged, LayerSkipped, LayerView, on_grid, patch_map
from hf_spectral.grid import TokenGrid, as_pair


def unwindow(tokens: Tensor, images: int, shape: tuple[int, int], window_size: int, shift_size: int = 0) -> Tensor:
    """Put windows back on the map: undo partition, cyclic shift and padding, in this order.

    Args:
        tokens: `(images * windows, heads, window_size ** 2, channels)`, windows of an image in raster order.
        images: Images in the batch.
        shape: Rows and columns of the map, padding not counted.
        window_size: Rows, and columns, of a window.
        shift_size: Tokens by which the map was rolled up and left before the partition.

    Returns:
        `(images, heads, nodes, channels)` in raster order.

    Raises:
        LayerSkipped: If the windows do not tile the padded map.
    """
    rows, columns = (math.ceil(length / window_size) for length in shape)
    _, heads, num_tokens, channels = tokens.shape
    if tokens.shape[0] != images * rows * columns or num_tokens != window_size**2:
        raise LayerSkipped(f"{tuple(tokens.shape)} is no partition of {shape[0]} x {shape[1]} tokens into windows")
    windows = tokens.reshape(images, rows, columns, heads, window_size, window_size, channels)
    plane = windows.permute(0, 3, 1, 4, 2, 5, 6).reshape(
        images, heads, rows * window_size, columns * window_size, channels
    )
    plane = plane.roll((shift_size, shift_size), dims=(2, 3))
    return plane[:, :, : shape[0], : shape[1]].reshape(images, heads, -1, channels)


def swin(view: LayerView) -> Arranged:
    """Return Swin arranged: windows, shifted in every other block; each stage halves the map, rounding up.

    Args:
        view: The call.

    Returns:
        The arranged call.

    Raises:
        LayerSkipped: If the layer belongs to no stage.
    """
    place = re.search(r"layers\.(\d+)\.blocks\.\d+", view.path)
    if place is None:
        raise LayerSkipped("it lies outside the stages of the backbone")
    # The block clamps window and shift while it runs, so they are read after the call.
    block: Any = view.tower.get_submodule(view.path[: place.end()])
    height, width = patch_map(view, round_up=True)
    for _ in range(int(place[1])):
        height, width = (height + 1) // 2, (width + 1) // 2
    images = view.pixels.shape[0]
    window_size, shift_size = int(block.window_size), int(block.shift_size)
    attention = view.attention.apply(lambda tokens: unwindow(tokens, images, (height, width), window_size, shift_size))
    return Arranged(attention, TokenGrid(height, width), windowed=window_size < max(height, width))


def swinv2(view: LayerView) -> Arranged:
    """Return Swin V2 arranged: as Swin; the learned scale of its cosine attention, one a head, goes into the query.

    The projections are normalized here as the layer does inside, so that the record holds what the layer compares.

    Args:
        view: The call.

    Returns:
        The arranged call.
    """
    layer: Any = view.tower.get_submodule(view.path)
    scale = layer.logit_scale.detach().clamp(max=math.log(100.0)).exp()
    query = F.normalize(view.attention.query, dim=-1) * scale
    key = F.normalize(view.attention.key, dim=-1)
    return swin(dataclasses.replace(view, attention=Attention(query, key, view.attention.value, 1.0)))


def sam(view: LayerView) -> Arranged:
    """Return SAM arranged: padded windows without shift, and global layers between them.

    Args:
        view: The call.

    Returns:
        The arranged call.
    """
    height, width = patch_map(view)
    block: Any = view.tower.get_submodule(view.path.rpartition(".")[0])
    if not block.window_size:
        grid = TokenGrid(height, width)
        return Arranged(on_grid(view.attention, grid), grid)
    images = view.pixels.shape[0]
    attention = view.attention.apply(lambda tokens: unwindow(tokens, images, (height, width), block.window_size))
    return Arranged(attention, TokenGrid(height, width), windowed=block.window_size < max(height, width))


def hiera(view: LayerView) -> Arranged:
    """Return Hiera arranged: tokens are unrolled so that what a query pools lies one stride apart.

    Args:
        view: The call.

    Returns:
        The arranged call.

    Raises:
        LayerSkipped: If patches are masked or queries are pooled.
    """
    tower: Any = view.tower
    if tower.embeddings.is_mae:
        raise LayerSkipped("the backbone masks patches at random; load it as HieraModel")
    layer: Any = tower.get_submodule(view.path)
    if layer.query_stride > 1:
        raise LayerSkipped("it pools its queries, so query and key lie on different grids")
    height, width = (
        pixels // stride for pixels, stride in zip(view.pixels.shape[-2:], view.config.patch_stride, strict=True)
    )
    schedule = [as_pair(stride) for stride in tower.unroll_schedule]
    while schedule and height * width > view.num_tokens:
        (stride_height, stride_width), *schedule = schedule
        height, width = height // stride_height, width // stride_width
    grid = TokenGrid(height, width)
    raster_to_layer = _hiera_order(height, width, schedule).argsort().to(view.attention.query.device)
    attention = on_grid(view.attention, grid).apply(lambda tokens: tokens[..., raster_to_layer, :])
    return Arranged(attention, grid, windowed=layer.use_mask_unit_attn and layer.window_size < grid.num_nodes)


def _hiera_order(height: int, width: int, schedule: list[tuple[int, int]]) -> Tensor:
    """Return the raster index of the token that lies at each position of an unrolled sequence."""
    order = torch.arange(height * width).reshape(1, height, width)
    for stride_height, stride_width in schedule:
        groups, height, width = order.shape
        order = order.reshape(groups, height // stride_height, stride_height, width // stride_width, stride_width)
        order = order.permute(0, 2, 4, 1, 3).reshape(-1, height // stride_height, width // stride_width)
    return order.reshape(-1)
