"""Base of the families of vision towers: prefix tokens, patches in raster order, suffix tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_spectral.errors import SpectralError, refuse_backbone
from hf_spectral.families.attention_call import AttentionCall, LayerSkipped
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.grid import TokenGrid, as_pair

# The most prefix tokens that are assumed in a backbone of no known family.
_MAX_UNKNOWN_PREFIX = 16
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TowerCall:
    """One attention call of a vision tower, with what is needed to read it.

    Args:
        tower: The module that sees the pixels.
        path: Name of the attention module in the tower.
        attention: What the layer attends with.
        inputs: Arguments of the tower's forward, by name.
    """

    tower: nn.Module
    path: str
    attention: AttentionCall
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
            raise LayerSkipped("the input is not a batch of images (images, channels, height, width)")
        return pixels

    def patch_map(self, *, round_up: bool = False) -> tuple[int, int]:
        """Return rows and columns of the patches of an image.

        Args:
            round_up: True if the backbone pads an image to whole patches, False if it cuts the rest off.

        Returns:
            Rows and columns.
        """
        height, width = self.pixels.shape[-2:]
        patch_height, patch_width = as_pair(getattr(self.config, "patch_stride", None) or self.config.patch_size)
        if round_up:
            return math.ceil(height / patch_height), math.ceil(width / patch_width)
        return height // patch_height, width // patch_width


@dataclasses.dataclass(frozen=True)
class Arranged:
    """An attention call in the form of a record: one row per image, patches only, in raster order.

    Args:
        attention: Query, key and value.
        grid: The map of the patches.
        windowed: True if the layer compares tokens within windows only.
    """

    attention: AttentionCall
    grid: TokenGrid
    windowed: bool = False


@dataclasses.dataclass(frozen=True)
class VisionFamily:
    """Backbones that lay out their tokens alike. A family that needs more overrides a method; subclasses are final.

    Args:
        model_types: What `config.model_type` says.
        num_prefix: Tokens before the patches; a number, or a function of the configuration.
        num_suffix: Tokens after the patches; likewise.
        reads_any_size: True if the host fits its positions to any size without being asked.
        interpolates: False if the host does not fit its positions even where its forward has an argument for it.
        has_fused_projection: True if one projection gives (3, heads, head_dim), in this order.
        scales_query: True if a layer that multiplies matrices itself scales the query first, so that the product shows
            what it compares.
        attends_in_parts: True if a layer attends several times, each time to the next part of the tokens.
        part: Beginning of the names of the layers that are read; "" for all.
        processor_crops: True if its processor crops, pads or asks for more than a picture; only its mean and spread are
            taken then.
        refusal: Why no record can hold its attention, or None if one can.
        example: A published checkpoint, for the table of backbones; "" if none is known.
        tested_on: What the tests run it with, for the same table.
        pathways: What its layers serve, for the same table where no tiny model of `BACKBONES` shows it.
    """

    model_types: tuple[str, ...]
    num_prefix: int | Callable[[Any], int] = 0
    num_suffix: int | Callable[[Any], int] = 0
    reads_any_size: bool = False
    interpolates: bool = True
    has_fused_projection: bool = False
    scales_query: bool = False
    attends_in_parts: bool = False
    part: str = ""
    processor_crops: bool = False
    refusal: str | None = None
    example: str = ""
    tested_on: str = "random weights"
    pathways: str = "where, what"
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)  # What the forward may ask for.

    def arrange(self, call: TowerCall) -> Arranged:
        """Bring one attention call into the form of a record.

        Args:
            call: The call; query, key and value have the same number of tokens.

        Returns:
            The arranged call.

        Raises:
            LayerSkipped: If no record can hold the call, or the tokens do not lie as the configuration announces.
            SpectralError: If the images of a batch differ in shape.
        """
        grid = TokenGrid(*call.patch_map(), _count(self.num_prefix, call.config))
        end = call.num_tokens - _count(self.num_suffix, call.config)
        return Arranged(call.attention.apply(lambda tokens: tokens[..., :end, :]).on_grid(grid), grid)

    def stated_sizes(self, config: Any) -> tuple[Any, Any]:
        """Return the side of a patch and that of the picture in pixels as the configuration states them, or None.

        Args:
            config: Of the tower.

        Returns:
            For each a number or a pair of them; None if the configuration does not say.
        """
        patch = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None)
        return patch, getattr(config, "image_size", None)

    def input_refusal(self, tower: nn.Module) -> str | None:
        """Return why a tower cannot be shown a picture, as far as its configuration and its forward tell.

        Args:
            tower: A vision tower.

        Returns:
            A reason without a full stop, or None if the tower states its sizes and asks for nothing but pixels.
        """
        config: Any = tower.config
        if hasattr(config, "num_frames"):
            return "it reads videos, not pictures"
        if (channels := getattr(config, "num_channels", 3)) != 3:
            return f"it reads pictures of {channels} channels"
        for name, stated in zip(("patch_size", "image_size"), self.stated_sizes(config), strict=True):
            if not isinstance(stated, int) and not (isinstance(stated, (list, tuple)) and len(stated) == 2):
                return f"its {type(config).__name__} does not state the `{name}` of pictures"
        needed = [
            name
            for name, parameter in inspect.signature(type(tower).forward).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            and name not in ("self", *self.inputs)
        ]
        return f"its forward needs {' and '.join(needed)} beside pixel_values" if needed else None

    def geometry(self, tower: nn.Module) -> InputGeometry:
        """Return the sizes of pictures that a tower reads.

        Args:
            tower: A vision tower for which `input_refusal` is None.

        Returns:
            Its geometry.
        """
        patch, image = self.stated_sizes(tower.config)
        parameters = inspect.signature(type(tower).forward).parameters
        interpolates = self.interpolates and "interpolate_pos_encoding" in parameters
        return InputGeometry(
            multiple=as_pair(patch),
            default=as_pair(image),
            is_fixed=not interpolates and not self.reads_any_size,
            forward_arguments={"interpolate_pos_encoding": True} if interpolates else {},
        )

    def to_inputs(self, tower: nn.Module, processor: Any, image: Image.Image, size: tuple[int, int]) -> Any:
        """Turn a picture into the arguments of the tower's forward.

        Args:
            tower: The vision tower.
            processor: The image processor of the backbone.
            image: RGB.
            size: Height and width at which the picture is read, in pixels.

        Returns:
            Tensors by name.

        Raises:
            UnsupportedBackboneError: If the processor makes no batch of images.
        """
        resample = getattr(processor, "resample", None)
        resample = Image.Resampling.BICUBIC if resample is None else Image.Resampling(int(resample))
        if self.processor_crops:
            mean, std = processor.image_mean or (0.0,), processor.image_std or (1.0,)
            return {self.inputs[0]: normalized(image, size, resample, mean, std)}
        resized = image.resize((size[1], size[0]), resample)
        made = processor(resized, do_resize=False, do_center_crop=False, do_pad=False, return_tensors="pt")
        if (axes := made["pixel_values"].ndim) != 4:
            reason = f"{type(processor).__name__} makes numbers of {axes} axes of a picture, where images have 4"
            refuse_backbone(type(tower).__name__, reason)
        return {"pixel_values": made["pixel_values"]}

    def whole_picture(self, tower: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the tower sees every patch, in raster order, in this thread only.

        Args:
            tower: The vision tower.
        """
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class UnknownFamily(VisionFamily):
    """Any other backbone: read as plain, with a warning, if the numbers allow it."""

    model_types: tuple[str, ...] = ()

    def arrange(self, call: TowerCall) -> Arranged:
        """Take up to 16 tokens before the patches for prefix tokens."""
        if getattr(call.config, "patch_size", None) is None:
            raise LayerSkipped(f"no token layout is known for {call.config.model_type!r}, which has no patch size")
        height, width = call.patch_map()
        num_prefix = call.num_tokens - height * width
        if not 0 <= num_prefix <= _MAX_UNKNOWN_PREFIX or call.attention.query.shape[0] != call.pixels.shape[0]:
            raise LayerSkipped(f"{call.num_tokens} tokens do not hold {height} x {width} patches in a known order")
        _warn_once(call.config.model_type, num_prefix)
        grid = TokenGrid(height, width, num_prefix)
        return Arranged(call.attention.on_grid(grid), grid)


@functools.cache
def _warn_once(model_type: str, num_prefix: int) -> None:
    _logger.warning(
        "%r is no known family of backbones: %d class tokens, then patches in raster order are assumed, which their "
        "number does not prove.",
        model_type,
        num_prefix,
    )


def normalized(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Turn a picture into numbers, without a processor.

    Args:
        image: RGB.
        size: Height and width in pixels.
        resample: How it is resized.
        mean: Of each channel, of numbers from 0 to 1.
        std: Of each channel.

    Returns:
        `(1, 3, height, width)`.
    """
    pixels = torch.from_numpy(np.array(image.resize((size[1], size[0]), resample), dtype=np.float32)) / 255
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None].contiguous()


def same_shapes(argument: str, shapes: Tensor) -> list[int]:
    """Return the shape that all images of a batch have.

    Args:
        argument: Name of the argument that states the shapes.
        shapes: One row for each image.

    Returns:
        The first row.

    Raises:
        SpectralError: If the rows differ.
    """
    if (shapes != shapes[0]).any():
        raise SpectralError(
            argument,
            expected="images of one shape in a batch",
            got=str(shapes.tolist()),
            fix="Analyze images of different shapes one at a time",
        )
    return shapes[0].tolist()


def _count(number: int | Callable[[Any], int], config: Any) -> int:
    return number if isinstance(number, int) else number(config)
