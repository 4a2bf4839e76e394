"""The layers of one forward pass, as they arrive, reduced to what a pathway compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.basis.factors import BasisLayer, UnitTokens, kept_dimensions, reduced, unit_tokens
from hf_spectral.basis.gram import Shape
from hf_spectral.config import Pathway
from hf_spectral.errors import SpectralError
from hf_spectral.records import AttentionRecord


@dataclasses.dataclass(frozen=True)
class Arrived:
    """One layer of an image or a batch.

    Args:
        name: Qualified module name.
        index: Position in call order.
        timestep: Diffusion timestep, or None.
        tokens: Unit vectors, of the width kept.
        shape: Height and width of the grid.
    """

    name: str
    index: int
    timestep: float | None
    tokens: UnitTokens
    shape: Shape

    @property
    def key(self) -> tuple[int, float | None]:
        """What tells a layer from the others of a forward pass."""
        return self.index, self.timestep


def received(
    record: AttentionRecord, pathway: Pathway, columns: Float[Tensor, "width kept"] | None, device: torch.device
) -> Arrived:
    """Take over a record.

    Args:
        record: One layer.
        pathway: Tells which vectors to keep.
        columns: Orthonormal columns that bound the width, or None.
        device: Where to keep them.

    Returns:
        The layer.

    Raises:
        SpectralError: If a number is not finite: it would spoil the sums of a whole dataset.
    """
    tokens = reduced(tuple(part.to(device) for part in unit_tokens(record, pathway)), columns)
    if not all(torch.isfinite(part).all() for part in tokens):
        raise SpectralError(
            "records", expected="finite numbers", got=f"NaN or infinity in {record.name}", fix="Leave this image out"
        )
    return Arrived(record.name, record.index, record.timestep, tokens, (record.grid.height, record.grid.width))


def described(arrived: Sequence[Arrived], pathway: Pathway, max_width: int | None) -> list[BasisLayer]:
    """Describe the layers of the first image as a basis does, with the width shared out among them.

    Args:
        arrived: Those that take part, of full width.
        pathway: Sets the columns of each factor.
        max_width: Bound on the sum of the factors' columns, or None.

    Returns:
        One description per layer.
    """
    widths = [one.tokens[0].shape[2] for one in arrived]
    sizes = zip(arrived, widths, kept_dimensions(widths, pathway, max_width), strict=True)
    return [BasisLayer(one.name, one.index, one.timestep, width, few) for one, width, few in sizes]


def in_order(arrived: Sequence[Arrived], layers: Sequence[BasisLayer]) -> list[Arrived]:
    """Return the layers in the order of a basis.

    Args:
        arrived: In any order.
        layers: The layers of the basis.

    Returns:
        One entry a layer.

    Raises:
        SpectralError: If a layer is missing, or came twice, or with other images.
    """
    found = {one.key: one for one in arrived}
    missing = [layer.name for layer in layers if layer.key not in found]
    if missing or len(found) < len(arrived) or len({one.tokens[0].shape[0] for one in arrived}) > 1:
        raise SpectralError(
            "records",
            expected=f"each of {len(layers)} layers once, all with the same images",
            got=f"no {missing[0]}" if missing else f"{len(arrived)} records of {len(found)} layers",
            fix="Give all records of one forward pass and no others",
        )
    return [found[layer.key] for layer in layers]
