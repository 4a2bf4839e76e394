"""Windows of tokens, put back on the map."""

from __future__ import annotations

import math

from torch import Tensor

from hf_spectral.families.attention_call import LayerSkipped


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
        raise LayerSkipped(f"{tuple(tokens.shape)} is not a partition of {shape[0]} x {shape[1]} tokens into windows")
    windows = tokens.reshape(images, rows, columns, heads, window_size, window_size, channels)
    plane = windows.permute(0, 3, 1, 4, 2, 5, 6).reshape(
        images, heads, rows * window_size, columns * window_size, channels
    )
    plane = plane.roll((shift_size, shift_size), dims=(2, 3))
    return plane[:, :, : shape[0], : shape[1]].reshape(images, heads, -1, channels)
