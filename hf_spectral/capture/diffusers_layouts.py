"""Where the image tokens of a denoiser's attention layer are: their map, and their place among the text tokens.

Each family has a rule for the place, and each rule is verified in every forward pass. In a double-stream block the
projection of values sees image tokens only, and values are neither normalized nor rotated: the rows that the rule picks
must equal what the projection gave. Where a layer rotates queries and keys, the rotations of the rows that the rule
picks must be those of the image's positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_spectral.errors import SpectralError
from hf_spectral.families.attention_call import Attention, LayerSkipped
from hf_spectral.grid import TokenGrid

_LINEAR = "it attends linearly: it never forms a softmax over query-key pairs that could be read as an affinity"


@dataclasses.dataclass(frozen=True)
class Family:
    """How the denoisers of one class lay out their tokens.

    Args:
        text: Where text tokens stand in the layers that see them, before or after the image; None if no layer does.
        sees_text: Tells by path and module whether a layer attends to text and image tokens alike.
        text_only: Start of the paths of layers that see text alone, which are none of the image's.
        rotates: True if layers rotate queries and keys after their projection.
        where_refused: Why the layers cannot serve the `where` pathway, or None if they can.
    """

    text: Literal["first", "last"] | None = None
    sees_text: Callable[[str, Any], bool] = lambda path, module: False
    text_only: str | None = None
    rotates: bool = False
    where_refused: str | None = None


FAMILIES = {
    "UNet2DConditionModel": Family(),
    "DiTTransformer2DModel": Family(),
    "PixArtTransformer2DModel": Family(),
    "SD3Transformer2DModel": Family("last", lambda path, module: module.added_kv_proj_dim is not None),
    "FluxTransformer2DModel": Family("first", lambda path, module: True, rotates=True),
    "Lumina2Transformer2DModel": Family(
        "first", lambda path, module: path.startswith("layers."), text_only="context_refiner.", rotates=True
    ),
    "SanaTransformer2DModel": Family(where_refused=_LINEAR),
}


@dataclasses.dataclass(frozen=True)
class DenoiserView:
    """One attention call of a denoiser, with what is needed to read it.

    Args:
        denoiser: The model.
        family: Its family.
        path: Name of the attention module.
        module: The attention module.
        attention: What it attends with, text tokens among them.
        inputs: Arguments of the denoiser's forward, by name.
        map_size: Rows and columns that reached the module's block as a map, or None.
        values: What the module's own projection of values gave, split into heads, or None if it was not called.
        rotation: Rotations that the module was given, or None.
        image_rotation: Rotations of the image's positions as the denoiser's own embedding gives them, or None.
    """

    denoiser: nn.Module
    family: Family
    path: str
    module: nn.Module
    attention: Attention
    inputs: Mapping[str, Any]
    map_size: tuple[int, int] | None
    values: Tensor | None
    rotation: Tensor | None
    image_rotation: Tensor | None


def family_of(model: object) -> Family | None:
    """Return the family of a denoiser, also of a subclass of one.

    Args:
        model: A model.

    Returns:
        The family, or None if it is not known.
    """
    return next((FAMILIES[one.__name__] for one in type(model).__mro__ if one.__name__ in FAMILIES), None)


def arrange(view: DenoiserView) -> tuple[Attention, TokenGrid, int]:
    """Return the image tokens of one call in raster order.

    Args:
        view: The call.

    Returns:
        Query, key and value of the image; its grid; the number of text tokens left out.

    Raises:
        LayerSkipped: If the call holds something else than one map of image tokens and the text tokens.
        SpectralError: If the tokens do not stand where the family's rule says.
    """
    if view.attention.query.shape[-2] != view.attention.key.shape[-2]:
        raise LayerSkipped("its queries and keys are not of the same tokens")
    height, width = view.map_size or _map_of_input(view.inputs, view.denoiser)
    nodes, tokens = height * width, view.attention.query.shape[-2]
    sees_text = view.family.text is not None and view.family.sees_text(view.path, view.module)
    num_text = _num_text_tokens(view.inputs) if sees_text else 0
    if tokens != nodes + num_text:
        raise LayerSkipped(f"its {tokens} tokens are not {height} x {width} image tokens and {num_text} text tokens")
    start = num_text if view.family.text == "first" else 0
    attention = view.attention.apply(lambda tensor: tensor[..., start : start + nodes, :])
    if sees_text:
        _verify_place(view, attention.value, slice(start, start + nodes))
    return attention, TokenGrid(height, width, start), num_text


def only_timestep(timestep: Any) -> float | None:
    """Return the timestep of a forward pass, which a record can hold only one of.

    Args:
        timestep: What the denoiser was given.

    Returns:
        A number, or None if there was none.

    Raises:
        SpectralError: If the images of a batch differ in it.
    """
    values = torch.as_tensor(timestep).flatten().unique().tolist() if timestep is not None else []
    if len(values) > 1:
        raise SpectralError(
            "timestep",
            expected="one timestep for all images of a batch",
            got=values,
            fix="Run the denoiser once a timestep",
        )
    return float(values[0]) if values else None


def _verify_place(view: DenoiserView, value: Tensor, rows: slice) -> None:
    """Refuse image tokens that are not where the rule says."""
    is_double_stream = getattr(view.module, "added_kv_proj_dim", None) is not None
    if is_double_stream and (view.values is None or not torch.equal(value, view.values)):
        _refuse(view, "values that differ from the projection of the image's tokens")
    if view.family.rotates and (
        view.rotation is None
        or view.image_rotation is None
        or not torch.equal(view.rotation[..., rows, :], view.image_rotation)
    ):
        _refuse(view, "rotations that differ from those of the image's positions")


def _refuse(view: DenoiserView, got: str) -> None:
    place = "after" if view.family.text == "first" else "before"
    raise SpectralError(
        "model",
        expected=f"image tokens {place} the text tokens in {view.path!r}",
        got=got,
        fix="Restore the family's own attention processors, e.g. by loading the model again; if that does not help, "
        "report the model",
    )


def _map_of_input(inputs: Mapping[str, Any], denoiser: Any) -> tuple[int, int]:
    if "img_ids" in inputs:
        return _map_of_positions(inputs["img_ids"])
    hidden_states = inputs.get("hidden_states")
    if not isinstance(hidden_states, Tensor) or hidden_states.ndim != 4:
        raise LayerSkipped("the input is no batch of maps (images, channels, height, width)")
    patch = denoiser.config.patch_size
    return hidden_states.shape[-2] // patch, hidden_states.shape[-1] // patch


def _map_of_positions(positions: Tensor) -> tuple[int, int]:
    """Read rows and columns from positions (tokens, 3) of Flux: a frame, a row and a column each."""
    positions = positions[0] if positions.ndim == 3 else positions
    rows, columns = (positions[:, axis].long() - positions[:, axis].long().min() for axis in (1, 2))
    height, width = int(rows.max()) + 1, int(columns.max()) + 1
    raster = torch.arange(height * width, device=rows.device)
    if not torch.equal(rows * width + columns, raster) or bool((positions[:, 0] != positions[0, 0]).any()):
        raise LayerSkipped("its image tokens are not one map in raster order: `img_ids` hold several images")
    return height, width


def _num_text_tokens(inputs: Mapping[str, Any]) -> int:
    mask = inputs.get("encoder_attention_mask")
    if mask is None:
        return inputs["encoder_hidden_states"].shape[1]
    lengths = mask.sum(dim=1).unique().tolist()
    if len(lengths) > 1:
        raise SpectralError(
            "encoder_attention_mask",
            expected="prompts of one length",
            got=f"{lengths} tokens",
            fix="Capture images with different prompts one at a time",
        )
    return int(lengths[0])
