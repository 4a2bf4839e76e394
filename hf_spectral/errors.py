"""The errors that a user can cause, each with a sentence that says what to do next."""

from __future__ import annotations


class SpectralError(ValueError):
    """A wrong input. The message names the argument, what was expected, what came, and the next step."""

    @classmethod
    def of(cls, argument: str, *, expected: str, got: object, fix: str) -> SpectralError:
        """Compose the message in the house's one form.

        Args:
            argument: Name of the argument as the caller wrote it.
            expected: What would have been accepted.
            got: What came; shown by `str`.
            fix: The next step, as an imperative sentence without a full stop.

        Returns:
            The error, ready to raise.
        """
        return cls(f"`{argument}`: expected {expected}, got {got}. {fix}.")


class UnsupportedBackboneError(SpectralError):
    """A model whose layers hold nothing that this package can analyse, named with the reason."""


class NotConvergedError(RuntimeError):
    """A solver that stopped before it reached its tolerance; the message holds the remedy."""
