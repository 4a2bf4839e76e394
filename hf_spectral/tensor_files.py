"""Safetensors files, written whole, and read from unknown origin only after their header has been checked."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hf_spectral.atomic import replacing
from hf_spectral.errors import SpectralError

Form = tuple[torch.dtype, tuple[int, ...]]

#: Far above any header or description that this package writes: one of a few hundred layers takes about 10 kB.
MAX_TEXT_BYTES = 4 << 20
_DTYPES = {torch.float32: ("F32", 4), torch.float64: ("F64", 8), torch.int64: ("I64", 8), torch.int32: ("I32", 4)}

#: What reading a hostile file can raise.
_DAMAGE_OF_TEXT = (OSError, ValueError, RecursionError, OverflowError, csv.Error)
DAMAGE = (*_DAMAGE_OF_TEXT, KeyError, TypeError, AttributeError, SafetensorError)


@contextlib.contextmanager
def undamaged(argument: str, source: object, expected: str, fix: str) -> Iterator[None]:
    """Turn what reading a damaged or hostile file raises into a SpectralError.

    Args:
        argument: Name of the argument as the user wrote it.
        source: The file or folder, as the user gave it.
        expected: What it should be.
        fix: What to do about it.

    Yields:
        Nothing.

    Raises:
        SpectralError: Instead of any of `DAMAGE`.
    """
    try:
        yield
    except DAMAGE as error:
        raise SpectralError(argument, expected=expected, got=f"{source}: {one_line(error)}", fix=fix) from error


def read_text(path: Path) -> str:
    """Read a small text file.

    Args:
        path: The file.

    Returns:
        Its text.

    Raises:
        ValueError: If it is larger than any that this package writes, or no UTF-8.
    """
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise ValueError(f"{path.name} of {size} bytes")
    return path.read_bytes().decode()


def parse_json(text: str) -> Any:
    """Parse JSON as the standard has it.

    Args:
        text: JSON, without NaN and infinity.

    Returns:
        The value.

    Raises:
        ValueError: If the text is not JSON.
    """
    return json.loads(text, parse_constant=_refuse_constant)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read what a safetensors file announces.

    Args:
        path: The file.

    Returns:
        The header, `__metadata__` included, and its length in bytes.

    Raises:
        ValueError: If there is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_TEXT_BYTES, size - 8):
            raise ValueError(f"{path.name} has no header")
        header = parse_json(file.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} has no header")
    return header, length


def write_described(
    path: str | os.PathLike[str], name: str, described: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write tensors and a description of them as one safetensors file. An interrupted call leaves no partial file.

    Args:
        path: A folder, or a file whose name ends in `.safetensors`. Missing folders are created.
        name: Name of the file in a folder.
        described: JSON values by name.
        tensors: By name.

    Returns:
        The path given.
    """
    path = Path(path)
    content = save(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, {"hf_spectral": json.dumps(described)}
    )
    with replacing(path if path.suffix == ".safetensors" else path / name) as partial:
        partial.write_bytes(content)
    return path


def read_described(path: Path, checks: Mapping[str, Callable[[Any], bool]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what the header of a file of `write_described` says.

    Args:
        path: The file.
        checks: For each value of the description, a function that returns whether it is valid; a missing value is None.

    Returns:
        The header, `__metadata__` included, and the description.

    Raises:
        ValueError: If there is no header, or a check fails.
    """
    header, _ = read_header(path)
    described = parse_json(header["__metadata__"]["hf_spectral"])
    for name, holds in checks.items():
        if not holds(described.get(name)):
            raise ValueError(f"{name} in {path.name} is {str(described.get(name))[:60]!r}")
    return header, described


def read_tensors(path: Path, forms: Mapping[str, Form]) -> tuple[dict[str, Tensor], bytes]:
    """Read a file whose tensors are known beforehand, after the header and the file's size were compared with them.

    Args:
        path: The file.
        forms: Type and shape of every tensor that has to be there, by name.

    Returns:
        The tensors, in the order of `forms`, and the file's bytes.

    Raises:
        ValueError: If there are other tensors, or a number is not finite.
    """
    header, length = read_header(path)
    if set(header) - {"__metadata__"} != set(forms):
        raise ValueError(f"{path.name} does not hold the tensors {', '.join(forms)[:80]}, and these only")
    total = 0
    for name, (dtype, shape) in forms.items():
        code, item_bytes = _DTYPES[dtype]
        if header[name]["dtype"] != code or header[name]["shape"] != list(shape):
            got = f"{str(header[name]['dtype'])[:20]} {str(header[name]['shape'])[:60]}"
            raise ValueError(f"the tensor {name} is {got}, not {code} {list(shape)}")
        total += item_bytes * math.prod(shape)
    size = path.stat().st_size
    if size != 8 + length + total:
        raise ValueError(f"{path.name} has {size} bytes, not {8 + length + total}")
    content = path.read_bytes()
    tensors = load(content)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the tensor {name} holds numbers that are not finite")
    return {name: tensors[name] for name in forms}, content


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line of bounded length.

    Args:
        error: Any error.

    Returns:
        Its text, or its type where it has none; of a file its own name only.
    """
    if isinstance(error, OSError) and isinstance(error.filename, str):
        return f"{Path(error.filename).name}: {error.strerror}"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
