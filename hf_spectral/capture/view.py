"""One attention call of a vision tower as it came, and as a record wants it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hf_spectral.capture.base import Attention
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, as_pair


class LayerSkipped(Exception):
    """A layer that attends in a way that no record can hold; the text is the reason."""


@dataclasses.dataclass(frozen=True)
class LayerView:
    """One attention call with what is needed to read it.

    Args:
        tower: The module that sees the pixels.
        path: Name of the attention module inside the tower.
        attention: As the layer hands it over.
        inputs: Arguments of the tower's forward, by name.
    """

    tower: nn.Module
    path: str
    attention: Attention
    inputs: Mapping[str, Any]

    @property
    def config(self) -> Any:
        """The tower's configuration."""
        return self.tower.config

    @property
    def num_tokens(self) -> int:
        """Tokens in a row of the query."""
        return self.attention.query.shape[-2]

    @property
    def pixels(self) -> Tensor:
        """The images, `(images, channels, height, width)`.

        Raises:
            LayerSkipped: If the tower was given anything else.
        """
        pixels = self.inputs.get("pixel_values")
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            raise LayerSkipped("the input is no batch of images (images, channels, height, width)")
        return pixels


@dataclasses.dataclass(frozen=True)
class Arranged:
    """An attention call in the form of a record: one row an image, patches only, in raster order."""

    attention: Attention
    grid: TokenGrid
    windowed: bool = False


def on_grid(attention: Attention, grid: TokenGrid) -> Attention:
    """Return the patches among a layer's tokens: those after the prefix.

    Args:
        attention: Prefix tokens, then patches in raster order.
        grid: Where they should lie.

    Returns:
        The attention of the patches.

    Raises:
        LayerSkipped: If the tokens are not so many as the grid says.
    """
    try:
        return attention.apply(grid.drop_prefix)
    except SpectralError as error:
        raise LayerSkipped(str(error).removesuffix(".")) from error


def patch_map(view: LayerView, *, round_up: bool = False) -> tuple[int, int]:
    """Return rows and columns of the patches of an image.

    Args:
        view: The call.
        round_up: True if the backbone pads an image to whole patches, False if it cuts the rest off.

    Returns:
        Rows and columns.
    """
    height, width = view.pixels.shape[-2:]
    patch_height, patch_width = as_pair(view.config.patch_size)
    if round_up:
        return math.ceil(height / patch_height), math.ceil(width / patch_width)
    return height // patch_height, width // patch_width
