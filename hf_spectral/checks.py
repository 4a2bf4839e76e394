"""Checks of arguments: each raises an error that names the argument, or returns the value as a plain Python type."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from hf_spectral.errors import SpectralError

# What every generator accepts: torch, numpy, and scikit-learn, whose range is the smallest.
_MOST_SEED = 2**32 - 1


def is_int(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer, of Python or numpy; booleans do not count.

    Args:
        value: Anything.

    Returns:
        True or False.
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite real number, of Python or numpy; booleans do not count.

    Args:
        value: Anything.

    Returns:
        True or False.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer beyond the range of floats.
        return False


def require_positive_int(argument: str, value: object) -> int:
    """Require an integer of at least 1, of Python or numpy.

    Args:
        argument: Name to show in the message.
        value: The value to check.

    Returns:
        The same number as a plain `int`.

    Raises:
        SpectralError: If `value` is not an integer of at least 1.
    """
    return require_int(argument, value, 1)


def keep_ints(owner: object, *names: str, least: int = 1) -> None:
    """Require fields of a frozen dataclass to be integers, of Python or numpy, and keep them as plain `int`.

    Args:
        owner: The object; its fields are overwritten.
        names: Of the fields.
        least: Smallest value allowed.

    Raises:
        SpectralError: If a field is not an integer of at least `least`.
    """
    for name in names:
        object.__setattr__(owner, name, require_int(name, getattr(owner, name), least))


def keep_numbers(owner: object, **ranges: tuple[float, float]) -> None:
    """Check fields of a frozen dataclass by `require_number`, and keep them as plain `float`.

    Args:
        owner: The object; its fields are overwritten.
        ranges: Lowest and highest value of each field, by name.

    Raises:
        SpectralError: If a field is out of range.
    """
    for name, (least, most) in ranges.items():
        object.__setattr__(owner, name, require_number(name, getattr(owner, name), least, most))


def require_seed(seed: object) -> int:
    """Require a seed that every generator accepts.

    Args:
        seed: The value to check.

    Returns:
        The same number as a plain `int`.

    Raises:
        SpectralError: If `seed` is not an integer from 0 to 2**32 - 1.
    """
    if not is_int(seed) or not 0 <= seed <= _MOST_SEED:
        raise SpectralError(
            "seed", expected="an integer from 0 to 2**32 - 1", got=repr(seed), fix="Leave it out for the default"
        )
    return int(seed)


def require_number(argument: str, value: object, least: float, most: float, fix: str = "Leave it out") -> float:
    """Require a number within a range, of Python or numpy.

    Args:
        argument: Name to show in the message.
        value: The value to check.
        least: Smallest value allowed.
        most: Largest value allowed.
        fix: The next step, for the message.

    Returns:
        The same number as a plain `float`.

    Raises:
        SpectralError: If `value` is not a number within the range.
    """
    if not is_number(value) or not least <= value <= most:
        span = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
        raise SpectralError(argument, expected=f"a number {span}", got=repr(value), fix=fix)
    return float(value)


def require_fields(argument: str, kind: type, values: Mapping[str, Any]) -> None:
    """Require values read from a file to be exactly the fields of a dataclass.

    Args:
        argument: Name to show in the message.
        kind: The dataclass.
        values: Values by name.

    Raises:
        SpectralError: If a name is unknown or missing.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    if set(values) != names:
        raise SpectralError(
            argument,
            expected=f"the fields {', '.join(sorted(names)) or 'of none'}",
            got=f"unknown {sorted(set(values) - names)}, missing {sorted(names - set(values))}",
            fix="Update hf-spectral",
        )


def require_known(given: Iterable[str], known: Iterable[str]) -> None:
    """Check the names of the arguments of a call.

    Args:
        given: Names in the call.
        known: All names that the call accepts.

    Raises:
        SpectralError: If a name is unknown.
    """
    names = sorted(known)
    if unknown := sorted(set(given) - set(names)):
        expected = f"one of the arguments {', '.join(names)}"
        raise SpectralError(unknown[0], expected=expected, got=unknown, fix="Check its name")


def require_same(
    argument: str,
    mine: Mapping[str, Any],
    theirs: Mapping[str, Any],
    what: str = "",
    fix: str = "Use the settings and the backbone it was started with, or start anew",
) -> None:
    """Require two groups of settings to be equal.

    Args:
        argument: Name to show in the message.
        mine: Settings that are expected, by name.
        theirs: Settings that were given, by name.
        what: What was expected, before the names and values.
        fix: What to do about it.

    Raises:
        SpectralError: If any differs; all that differ are named.
    """
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differing:
        expected, got = (", ".join(f"{name}={one.get(name)!r}" for name in differing) for one in (mine, theirs))
        raise SpectralError(argument, expected=what + expected, got=got, fix=fix)


def require_int(argument: str, value: object, least: int) -> int:
    """Require an integer of at least some value, of Python or numpy.

    Args:
        argument: Name to show in the message.
        value: The value to check.
        least: The smallest allowed.

    Returns:
        The same number as a plain `int`.

    Raises:
        SpectralError: If `value` is not an integer of at least `least`.
    """
    if not is_int(value) or value < least:
        raise SpectralError(argument, expected=f"an integer of at least {least}", got=repr(value), fix="Give a count")
    return int(value)


def require_one_of(argument: str, value: object, allowed: tuple[str, ...], other: str = "") -> None:
    """Require one of several names.

    Args:
        argument: Name to show in the message.
        value: The value to check.
        allowed: The names.
        other: What else is allowed, for the message.

    Raises:
        SpectralError: If `value` is not one of them.
    """
    if value not in allowed:
        names = ", ".join(map(repr, allowed)) + (other and f", or {other}")
        raise SpectralError(argument, expected=f"one of {names}", got=repr(value), fix="Choose one of these names")


def require_extra(extra: str, package: str) -> None:
    """Require an optional package to be installed.

    Args:
        extra: Extra of hf-spectral that installs it.
        package: Name of the package.

    Raises:
        SpectralError: If it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise SpectralError(
            package, expected=f"the extra [{extra}]", got="none", fix=f"Run: pip install 'hf-spectral[{extra}]'"
        )
