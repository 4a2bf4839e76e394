"""The errors that a user can cause, each with a sentence that says what to do next."""

from __future__ import annotations

import re
from typing import Any, NoReturn


class HFSpectralError(Exception):
    """Base of every error that this package raises on purpose: `except HFSpectralError` catches them all."""


class SpectralError(HFSpectralError, ValueError):
    """Raised for a wrong input. The message names the argument, what was expected, what came, and the next step.

    The four parts are also attributes of the error; they are None on an error rebuilt by `from_message`.

    Args:
        argument: Name of the argument as the caller wrote it.
        expected: What would have been accepted.
        got: The value that was given; the message shows its `str`.
        fix: The next step, as an imperative sentence without a full stop.
    """

    argument: str | None = None
    expected: str | None = None
    got: Any = None
    fix: str | None = None

    def __init__(self, argument: str, *, expected: str, got: object, fix: str) -> None:
        super().__init__(f"`{argument}`: expected {expected}, got {got}. {fix}.")
        self.argument, self.expected, self.got, self.fix = argument, expected, got, fix

    @classmethod
    def from_message(cls, message: str) -> SpectralError:
        """Rebuild an error that was sent from another process as text.

        Args:
            message: The text of the error, as `str` gave it.

        Returns:
            An error with this text.
        """
        error = cls.__new__(cls, message)
        Exception.__init__(error, message)
        return error

    def __reduce__(self) -> tuple[Any, ...]:
        # `got` may be a tensor or a picture; between processes, only its text is sent.
        parts = {"argument": self.argument, "expected": self.expected, "got": str(self.got), "fix": self.fix}
        return type(self).from_message, (str(self),), parts


class UnsupportedBackboneError(SpectralError):
    """Raised for a model whose layers hold nothing that this package can analyze; the message says why."""


def refuse_backbone(
    name: str,
    reason: str,
    expected: str = "a backbone whose self-attention layers show query, key and value on one grid",
    fix: str = "Choose another backbone, e.g. facebook/dinov2-small",
    cause: Exception | None = None,
) -> NoReturn:
    """Refuse a model, in the same sentence wherever it fails.

    Args:
        name: Name of the model's class.
        reason: Why it cannot be read; line breaks become spaces.
        expected: As for `SpectralError`.
        fix: As for `SpectralError`.
        cause: The error that showed it.

    Raises:
        UnsupportedBackboneError: Always.
    """
    got = f"{name} ({' '.join(reason.split())})"
    raise UnsupportedBackboneError("model", expected=expected, got=got, fix=fix) from cause


#: What running or reading a model of an unforeseen structure raises. Memory, files and interrupts are another matter.
STRUCTURE_ERRORS = (AttributeError, TypeError, LookupError, ValueError, RuntimeError, AssertionError)


class NotConvergedError(HFSpectralError, RuntimeError):
    """Raised where a solver stopped before it reached its tolerance; the message holds the remedy."""


def shown(source: str) -> str:
    """Return a path or URL as messages show it.

    Args:
        source: The path or URL.

    Returns:
        At most about 200 characters; of a URL without user name, password, query and data, which may hold a token.
    """
    if source[:5].lower() == "data:":
        return f"{source[:30].partition(',')[0]},..."
    if "://" in source:
        source = re.sub(r"^(\w[\w+.-]*://)[^/?#]*@", r"\1", source)
        source = re.sub(r"[?#].*", "?...", source, flags=re.DOTALL)
    return source if len(source) <= 200 else f"{source[:60]}...{source[-130:]}"
