"""The bases of what is kept in files and pushed: a short description, `from_pretrained` and `push_to_hub`."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_spectral.hub_download import located
from hf_spectral.tensor_files import undamaged
from hf_spectral.torch_state import plain_torch

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from typing_extensions import Self


class Published:
    """Base of objects that are pushed to the Hub."""

    # Returns a function of `hf_spectral.hub` by its name. It is set where the package is imported: imports go down
    # only, and the room that writes to the Hub is far above.
    _hub: ClassVar[Callable[[str], Callable[..., Any]]]

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
        return type(self)._hub("push_to_hub")(self, repo_id, **settings)


class Kept:
    """Base of objects that are saved to files."""

    # Files in a folder or a repository, and what messages say: the argument, what is expected, what to do.
    _files: ClassVar[tuple[str, ...]]
    _argument: ClassVar[str]
    _expected: ClassVar[str]
    _fix: ClassVar[str]

    def _facts(self) -> dict[str, str]:
        """Return the facts of the short description by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n  ".join([type(self).__name__, *(f"{name}: {fact}" for name, fact in self._facts().items())])

    def _repr_html_(self) -> str:
        """Return the same as a table, for notebooks."""
        rows = (f"<tr><th>{name}</th><td>{html.escape(fact)}</td></tr>" for name, fact in self._facts().items())
        return f"<table><caption>{type(self).__name__}</caption>{''.join(rows)}</table>"

    @classmethod
    def _read(cls, path: Path) -> Self:
        """Read a file, or of several files their folder; what damaged or hostile files raise is in `DAMAGE`."""
        raise NotImplementedError

    @classmethod
    @plain_torch()
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Read what `save_pretrained` wrote. Nothing in it is trusted: sizes are compared before memory is taken.

        Args:
            source: What `save_pretrained` returned, a folder or a file, or the id of a repository of the Hub,
                `user/name`.
            revision: Branch, tag or commit of the repository.
            cache_dir: Where downloads are kept; None takes the place that all of Hugging Face shares.
            token: For a private or gated repository; None takes the one of `hf auth login`.
            local_files_only: Take what is in the cache, and ask nobody.

        Returns:
            The object, on the CPU.

        Raises:
            SpectralError: If a file is missing, is not one that `save_pretrained` wrote, or does not fit the others, or
                the Hub does not give it.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        path = located(source, cls._files, cls._argument, **hub)
        with undamaged(cls._argument, source, cls._expected, cls._fix):
            return cls._read(path if path.is_file() or len(cls._files) > 1 else path / cls._files[0])


def shown_eigenvalues(eigenvalues: Any) -> str:
    """Return the first eigenvalues as text.

    Args:
        eigenvalues: Tensor of shape (eigenvectors,).

    Returns:
        At most five numbers with four decimals.
    """
    shown = [f"{value:.4f}" for value in eigenvalues[:5].tolist()]
    return ", ".join(shown + ["..."] * (len(eigenvalues) > 5))
