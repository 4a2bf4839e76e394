"""The base of results and bases: a short description, and `push_to_hub`."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class Kept:
    """Base of objects that are saved to files and pushed to the Hub."""

    # Set where the package is imported: imports go down only, and the room that writes to the Hub is far above.
    _publish: ClassVar[Callable[..., Any]]

    def _facts(self) -> dict[str, str]:
        """Return the facts of the short description by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n  ".join([type(self).__name__, *(f"{name}: {fact}" for name, fact in self._facts().items())])

    def _repr_html_(self) -> str:
        """Return the same as a table, for notebooks."""
        rows = (f"<tr><th>{name}</th><td>{html.escape(fact)}</td></tr>" for name, fact in self._facts().items())
        return f"<table><caption>{type(self).__name__}</caption>{''.join(rows)}</table>"

    def push_to_hub(self, repo_id: str, **settings: Any) -> CommitInfo:
        """Push to the Hub, with a card that explains how to load it again.

        Example:
            >>> basis.push_to_hub("user/name", private=True)

        Args:
            repo_id: Repository `user/name`, created if it does not exist.
            **settings: `details`, `private`, `revision`, ..., see `hf_spectral.push_to_hub`.

        Returns:
            Information about the commit, including `commit_url` and `pr_url`.

        Raises:
            SpectralError: If the repository contains something else, or the Hub rejects the push.
        """
        return type(self)._publish(self, repo_id, **settings)


def shown_eigenvalues(eigenvalues: Any) -> str:
    """Return the first eigenvalues as text.

    Args:
        eigenvalues: Tensor of shape (eigenvectors,).

    Returns:
        At most five numbers with four decimals.
    """
    shown = [f"{value:.4f}" for value in eigenvalues[:5].tolist()]
    return ", ".join(shown + ["..."] * (len(eigenvalues) > 5))
