"""Where the image tokens of a denoiser's attention layer are: their map, and their place among the text tokens.

Each family states the place, which is verified in every forward pass. In a double-stream block the projection of values
sees image tokens only, and values are neither normalized nor rotated: the rows at the stated place must equal what the
projection gave. Where a module is given image and text apart and joins them itself, the rows at the stated place must
be the image's before the projection. Where a layer rotates queries and keys, the rotations of these rows must be those
of the image's positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_spectral.errors import HFSpectralError, SpectralError
from hf_spectral.families.attention_call import AttentionCall, LayerSkipped
from hf_spectral.families.diffusers import DenoiserFamily
from hf_spectral.grid import TokenGrid


@dataclasses.dataclass(frozen=True)
class DenoiserCall:
    """One attention call of a denoiser, with what is needed to read it.

    Args:
        denoiser: The model.
        family: Its family.
        path: Name of the attention module.
        module: The attention module.
        attention: What it attends with, text tokens among them.
        inputs: Arguments of the denoiser's forward, by name.
        map_size: Rows and columns that reached the module's block as a map, or None.
        token_map: Returns rows and columns of the denoiser's image tokens, for layers that no map has reached.
        shown: What the module was given as its hidden states.
        projected_from: What its projection of values was given, or None if it was not called.
        values: What the module's own projection of values gave, split into heads, or None if it was not called.
        rotation: Rotations that the module was given, or None.
        image_rotation: Rotations of the image's positions as the denoiser's own embedding gives them, or None.
    """

    denoiser: nn.Module
    family: DenoiserFamily
    path: str
    module: nn.Module
    attention: AttentionCall
    inputs: Mapping[str, Any]
    map_size: tuple[int, int] | None
    token_map: Callable[[], tuple[int, int]]
    shown: Any
    projected_from: Any
    values: Tensor | None
    rotation: Tensor | None
    image_rotation: Tensor | None


def arrange(
    call: DenoiserCall, require: Callable[[Tensor, HFSpectralError], None]
) -> tuple[AttentionCall, TokenGrid, int]:
    """Return the image tokens of one call in raster order.

    Args:
        call: The call.
        require: `Recorder.require`, which is told what the tokens at the stated place have to be.

    Returns:
        Query, key and value of the image; its grid; the number of text tokens left out.

    Raises:
        LayerSkipped: If the call holds something else than one map of image tokens and the text tokens.
        SpectralError: If the tokens do not stand where the family's rule says.
    """
    if call.attention.query.shape[-2] != call.attention.key.shape[-2]:
        raise LayerSkipped("its queries and keys are not of the same tokens")
    height, width = call.map_size or call.token_map()
    nodes, tokens = height * width, call.attention.query.shape[-2]
    sees_text = call.family.sees_text(call.path, call.module)
    num_text = call.family.num_text_tokens(call.denoiser, call.inputs, call.path) if sees_text else 0
    if tokens != nodes + num_text:
        raise LayerSkipped(f"its {tokens} tokens are not {height} x {width} image tokens and {num_text} text tokens")
    start = num_text if call.family.text == "first" else 0
    attention = call.attention.apply(lambda tensor: tensor[..., start : start + nodes, :])
    if sees_text:
        _verify_place(call, attention.value, slice(start, start + nodes), require)
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
            fix="Run the denoiser once per timestep",
        )
    return float(values[0]) if values else None


def _verify_place(
    call: DenoiserCall, value: Tensor, rows: slice, require: Callable[[Tensor, HFSpectralError], None]
) -> None:
    """Refuse image tokens that are not where the rule says: at once by shapes, later by numbers."""

    def require_equal(found: Tensor | None, expected: Tensor | None, got: str) -> None:
        refusal = _refusal(call, got)
        if found is None or expected is None or found.shape != expected.shape:
            raise refusal
        same = (found == expected.to(found.device)).all()
        require(torch.where(same, 0.0, torch.nan), refusal)

    tokens, nodes = call.attention.value.shape[-2], value.shape[-2]
    is_double_stream = getattr(call.module, "added_kv_proj_dim", None) is not None
    if call.values is not None and call.values.shape[-2] < tokens:
        is_double_stream = True
    if is_double_stream:
        projected = None if call.values is None else call.values[..., :nodes, :]
        require_equal(value, projected, "values that differ from the projection of the image's tokens")
    shown, joined = call.shown, call.projected_from
    joins = isinstance(joined, Tensor) and isinstance(shown, Tensor) and shown.shape[-2] < joined.shape[-2]
    if joins:
        require_equal(joined[..., rows, :], shown, "other tokens than those that the module was given as the image's")
    if call.family.rotates:
        turned = None if call.rotation is None else call.rotation[..., rows, :]
        require_equal(turned, call.image_rotation, "rotations that differ from those of the image's positions")


def _refusal(call: DenoiserCall, got: str) -> SpectralError:
    place = "after" if call.family.text == "first" else "before"
    return SpectralError(
        "model",
        expected=f"image tokens {place} the text tokens in {call.path!r}",
        got=got,
        fix="Restore the family's own attention processors, e.g. by loading the model again; if that does not help, "
        "report the model",
    )
