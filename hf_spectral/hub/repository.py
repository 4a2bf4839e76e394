"""A repository of the Hub to push to: created if necessary, and never overwritten if it contains something else."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hf_spectral.errors import SpectralError
from hf_spectral.hub_download import require_repository, require_token
from hf_spectral.hub_errors import said_plainly

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

CARD_NAME = "README.md"
_ALWAYS_THERE = frozenset({".gitattributes", CARD_NAME})


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository of the Hub and the settings of a push.

    Args:
        repo_id: Repository `user/name`.
        kind: Type of the repository.
        token: Token with write access; None takes the token of `hf auth login`.
        private: Whether a new repository is private; None takes the default of the account.
        revision: Branch, created if it does not exist; None takes `main`.
        create_pr: Whether to open a pull request instead of committing to a branch.

    Raises:
        SpectralError: If the name or the token is malformed, or a revision is combined with a pull request.
    """

    repo_id: str
    kind: Literal["model", "dataset", "space"]
    token: str | bool | None = dataclasses.field(default=None, repr=False)
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False

    def __post_init__(self) -> None:
        """Check the arguments that can be checked without a request."""
        require_repository(self.repo_id)
        require_token(self.token)
        if self.create_pr and self.revision is not None:
            raise SpectralError(
                "revision",
                expected="none beside create_pr=True: a pull request has a branch of its own",
                got=repr(self.revision),
                fix="Leave one of them out",
            )

    @functools.cached_property
    def api(self) -> HfApi:
        """Client of the Hub with the token of the user."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token, library_name="hf-spectral")

    def create(self) -> None:
        """Create the repository and the branch, if they do not exist.

        Raises:
            SpectralError: If the Hub rejects the request.
        """
        sdk = "gradio" if self.kind == "space" else None
        with said_plainly(self.repo_id):
            self.api.create_repo(self.repo_id, repo_type=self.kind, private=self.private, space_sdk=sdk, exist_ok=True)
            if self.revision is not None and not self.revision.startswith("refs/pr/"):
                self.api.create_branch(self.repo_id, branch=self.revision, repo_type=self.kind, exist_ok=True)

    def names(self) -> frozenset[str]:
        """Return the names of the files and folders at the top level.

        Returns:
            Their names.

        Raises:
            SpectralError: If the Hub rejects the request.
        """
        with said_plainly(self.repo_id):
            tree = self.api.list_repo_tree(self.repo_id, revision=self.revision, repo_type=self.kind)
            return frozenset(entry.path for entry in tree)

    def require_own(self, marker: str) -> None:
        """Check that the repository is empty (except for a card) or was created by the same kind of push.

        Args:
            marker: Name of a file that every push of this kind writes.

        Raises:
            SpectralError: If the repository contains files but not `marker`, or the Hub rejects the request.
        """
        names = self.names() - _ALWAYS_THERE
        if names and marker not in names:
            raise self.taken(", ".join(sorted(names)[:3]))

    def taken(self, holds: str) -> SpectralError:
        """Return the error for a repository that contains something else.

        Args:
            holds: Description of what the repository contains.

        Returns:
            The error, to be raised.
        """
        return SpectralError(
            "repo_id",
            expected="a new name, or a repository that an earlier push of the same kind has made",
            got=f"{self.repo_id}, which holds something else: {holds}",
            fix="Choose another name; nothing was changed",
        )

    def commit(self, files: Mapping[str, bytes | Path], message: str) -> CommitInfo:
        """Write files in a single commit; other files remain unchanged.

        Args:
            files: Contents, or where these lie, by path.
            message: Commit message.

        Returns:
            Information about the commit, including `commit_url` and `pr_url`.

        Raises:
            SpectralError: If the Hub rejects the commit, or the connection fails.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        with said_plainly(self.repo_id):
            return self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                repo_type=self.kind,
                revision=self.revision,
                create_pr=self.create_pr,
            )
