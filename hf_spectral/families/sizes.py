"""The size at which a backbone reads a picture."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_spectral.checks import require_positive_int
from hf_spectral.errors import SpectralError

#: Tokens of one picture, at most: a dense affinity of so many takes 17 GB. Raise it where there is memory for more.
MAX_TOKENS = 2**16


@dataclasses.dataclass(frozen=True)
class InputGeometry:
    """The image sizes that a backbone reads.

    Args:
        multiple: Height and width that the sides have to be multiples of, in pixels.
        default: The backbone's own height and width, in pixels.
        is_fixed: True if it reads no other size; pictures are then stretched to it.
        forward_arguments: What its forward needs to be told so that it reads any size.
        is_square: True if it reads squares only; pictures are then stretched to one.
        longest: Longest side that it has positions for, in pixels; None if there is no bound.
        shortest: Shortest side that it reads, in pixels; a picture is enlarged to it. None if there is no bound.
        note: What a user has to know about how every picture is read, or "".
    """

    multiple: tuple[int, int]
    default: tuple[int, int]
    is_fixed: bool
    forward_arguments: dict[str, Any]
    is_square: bool = False
    longest: int | None = None
    shortest: int | None = None
    note: str = ""

    def size_for(self, height: int, width: int, resolution: int | None = None) -> tuple[int, int]:
        """Return the size at which a picture is read: its sides are multiples of `multiple`.

        Its aspect ratio is kept, unless the backbone reads one size or squares only: `notes_for` says so.

        Args:
            height: Of the picture, in pixels.
            width: Of the picture, in pixels.
            resolution: Longer side wanted, in pixels; None takes the backbone's own.

        Returns:
            Height and width in pixels, at least one multiple each.

        Raises:
            SpectralError: If `resolution` is no positive integer, or the backbone's size is fixed to another one, or
                the picture would be longer than `longest` or have more than `MAX_TOKENS` tokens.
        """
        if resolution is not None:
            require_positive_int("resolution", resolution)
        if self.is_fixed:
            if resolution not in (None, max(self.default)):
                raise SpectralError(
                    "resolution",
                    expected=f"None: this backbone reads {self.default[0]} x {self.default[1]} pixels only",
                    got=resolution,
                    fix="Leave it out, or choose a backbone that interpolates its position embeddings, e.g. DINOv2",
                )
            return self.default
        size = self._kept(1, 1, resolution) if self.is_square else self._kept(height, width, resolution)
        if self.longest is not None and max(size) > self.longest:
            raise SpectralError(
                "resolution",
                expected=f"at most {self.longest} pixels, for which the backbone has positions",
                got=max(size),
                fix="Give a smaller resolution",
            )
        if self.shortest is not None and min(size) < self.shortest:
            raise SpectralError(
                "resolution",
                expected=f"one that makes the shorter side at least {self.shortest} pixels, one window of the backbone",
                got=f"{resolution}, which makes {size[0]} x {size[1]}",
                fix="Leave it out, or give a larger one",
            )
        rows, columns = size[0] // self.multiple[0], size[1] // self.multiple[1]
        if rows * columns > MAX_TOKENS:
            raise SpectralError(
                "resolution",
                expected=f"at most {MAX_TOKENS} tokens per picture",
                got=f"{resolution}, which makes {rows} x {columns}",
                fix=f"Give about {int(max(size) * (MAX_TOKENS / (rows * columns)) ** 0.5)} or less, or raise "
                "hf_spectral.families.sizes.MAX_TOKENS",
            )
        return size

    def notes_for(self, height: int, width: int, resolution: int | None = None) -> tuple[str, ...]:
        """Return what a user has to know about how a picture is read.

        Args:
            height: As for `size_for`.
            width: As for `size_for`.
            resolution: As for `size_for`.

        Returns:
            `note`, if there is one, and one sentence if the picture is stretched by more than the rounding to
            `multiple`.
        """
        read = self.size_for(height, width, resolution)
        notes = (self.note,) if self.note else ()
        if read == self._kept(height, width, resolution):
            return notes
        kind = "squares" if self.is_square else "one size of pictures"
        return (
            *notes,
            f"The backbone reads {kind} only: the picture of {height} x {width} pixels was stretched to "
            f"{read[0]} x {read[1]}, its aspect ratio not kept.",
        )

    def _kept(self, height: int, width: int, resolution: int | None) -> tuple[int, int]:
        factor = min(resolution or max(self.default), 2**62) / max(height, width)  # Beyond that, no float may hold it.
        if self.shortest is not None and resolution is None:
            factor = max(factor, (self.shortest + max(self.multiple) / 2) / min(height, width))
        return _rounded(height * factor, self.multiple[0]), _rounded(width * factor, self.multiple[1])


def _rounded(length: float, multiple: int) -> int:
    return max(1, round(length / multiple)) * multiple
