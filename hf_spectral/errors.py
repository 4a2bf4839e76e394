"""The errors that a user can cause, each with a sentence that says what to do next."""

from __future__ import annotations


class SpectralError(ValueError):
    """A wrong input. The message names the argument, what was expected, what came, and the next step.

    Args:
        argument: Name of the argument as the caller wrote it. Alone, it is the whole message: so errors travel between
            processes.
        expected: What would have been accepted.
        got: What came; shown by `str`.
        fix: The next step, as an imperative sentence without a full stop.
    """

    def __init__(self, argument: str, *, expected: str | None = None, got: object = None, fix: str = "") -> None:
        super().__init__(argument if expected is None else f"`{argument}`: expected {expected}, got {got}. {fix}.")


class UnsupportedBackboneError(SpectralError):
    """A model whose layers hold nothing that this package can analyze, named with the reason."""


class NotConvergedError(RuntimeError):
    """A solver that stopped before it reached its tolerance; the message holds the remedy."""
