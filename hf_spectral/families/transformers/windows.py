"""Windows of tokens, put back on the map."""

from __future__ import annotations

import math

from torch import Tensor

from hf_spectral.families.attention_call import LayerSkipped
from hf_spectral.families.transformers.base import Arranged, TowerCall
from hf_spectral.grid import TokenGrid, as_pair


def from_windows(
    call: TowerCall,
    shape: tuple[int, int],
    window_size: int | tuple[int, int],
    shift_size: int | tuple[int, int] = 0,
    *,
    rolls_padding: bool = True,
) -> Arranged:
    """Bring a layer that attends within windows into the form of a record.

    Args:
        call: The call.
        shape: Rows and columns of the map, padding not counted.
        window_size: As for `unwindow`; 0 for a layer that compares all tokens.
        shift_size: As for `unwindow`.
        rolls_padding: As for `unwindow`.

    Returns:
        The arranged call; it is `windowed` unless one window holds the whole map.
    """
    grid, images = TokenGrid(*shape), call.pixels.shape[0]
    if not window_size:
        return Arranged(call.attention.on_grid(grid), grid)
    (rows, columns), padded = as_pair(window_size), {"rolls_padding": rolls_padding}
    attention = call.attention.apply(lambda one: unwindow(one, images, shape, window_size, shift_size, **padded))
    return Arranged(attention, grid, windowed=rows < grid.height or columns < grid.width)


def unwindow(
    tokens: Tensor,
    images: int,
    shape: tuple[int, int],
    window_size: int | tuple[int, int],
    shift_size: int | tuple[int, int] = 0,
    *,
    rolls_padding: bool = True,
) -> Tensor:
    """Put windows back on the map: undo partition, cyclic shift and padding, in this order.

    Args:
        tokens: `(images * windows, heads, tokens of a window, channels)`, windows of an image in raster order.
        images: Images in the batch.
        shape: Rows and columns of the map, padding not counted.
        window_size: Rows and columns of a window, a number if they are equal.
        shift_size: Tokens by which the map was rolled up and left before the partition, a number if they are equal.
        rolls_padding: True if the padded map was rolled, False if it was rolled first and padded then.

    Returns:
        `(images, heads, nodes, channels)` in raster order.

    Raises:
        LayerSkipped: If the windows do not tile the padded map.
    """
    (height, width), window, shift = shape, as_pair(window_size), as_pair(shift_size)
    rows, columns = (math.ceil(length / side) for length, side in zip(shape, window, strict=True))
    _, heads, num_tokens, channels = tokens.shape
    if tokens.shape[0] != images * rows * columns or num_tokens != window[0] * window[1]:
        raise LayerSkipped(f"{tuple(tokens.shape)} is not a partition of {shape[0]} x {shape[1]} tokens into windows")
    windows = tokens.reshape(images, rows, columns, heads, *window, channels)
    plane = windows.permute(0, 3, 1, 4, 2, 5, 6).reshape(images, heads, rows * window[0], columns * window[1], channels)
    if not rolls_padding:
        plane = plane[:, :, :height, :width]
    plane = plane.roll(shift, dims=(2, 3))
    return plane[:, :, :height, :width].reshape(images, heads, -1, channels)
