"""One repository of the Hub, written to: made if need be, never over something else, one commit a push."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from hf_spectral.errors import SpectralError
from hf_spectral.refusals import said_plainly
from hf_spectral.snapshot import require_repository, require_token

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

CARD_NAME = "README.md"
_ALWAYS_THERE = frozenset({".gitattributes", CARD_NAME})


@dataclasses.dataclass(frozen=True)
class Repository:
    """Where to push.

    Args:
        repo_id: `user/name`.
        kind: Of the repository.
        token: The user's, or None for the one of `hf auth login`.
        private: True hides a new repository; None takes the account's default.
        revision: Branch, made if need be; None takes `main`.
        create_pr: Propose the push in place of making it.

    Raises:
        SpectralError: If the name or the token cannot be one, or a revision stands beside a pull request.
    """

    repo_id: str
    kind: Literal["model", "dataset", "space"]
    token: str | bool | None = dataclasses.field(default=None, repr=False)
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False

    def __post_init__(self) -> None:
        """Refuse what no request needs to be made for."""
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
        """The client of the Hub, with the user's token."""
        from huggingface_hub import HfApi

        return HfApi(token=self.token, library_name="hf-spectral")

    def create(self) -> None:
        """Make the repository and the branch, unless they are there.

        Raises:
            SpectralError: If the Hub refuses.
        """
        with said_plainly(self.repo_id):
            sdk = "gradio" if self.kind == "space" else None
            self.api.create_repo(self.repo_id, repo_type=self.kind, private=self.private, exist_ok=True, space_sdk=sdk)
            if self.revision is not None and not self.revision.startswith("refs/pr/"):
                self.api.create_branch(self.repo_id, branch=self.revision, repo_type=self.kind, exist_ok=True)

    def names(self) -> frozenset[str]:
        """Return the names of files and folders at the top.

        Returns:
            Names.

        Raises:
            SpectralError: If the Hub refuses.
        """
        with said_plainly(self.repo_id):
            tree = self.api.list_repo_tree(self.repo_id, revision=self.revision, repo_type=self.kind)
            return frozenset(entry.path for entry in tree)

    def require_own(self, marker: str) -> None:
        """Refuse to write over what another program, or another kind of push, has put there.

        Args:
            marker: A file that every push of this kind leaves; a repository with a card alone is free.

        Raises:
            SpectralError: If there are files, the marker not among them, or the Hub refuses.
        """
        names = self.names() - _ALWAYS_THERE
        if names and marker not in names:
            raise self.taken(", ".join(sorted(names)[:3]))

    def taken(self, holds: str) -> SpectralError:
        """Return the error that says that the name is taken.

        Args:
            holds: What the repository holds.

        Returns:
            The error, to be raised.
        """
        return SpectralError(
            "repo_id",
            expected="a new name, or a repository that an earlier push of the same kind has made",
            got=f"{self.repo_id}, which holds something else: {holds}",
            fix="Choose another name; nothing was changed",
        )

    def commit(self, files: Mapping[str, bytes], message: str) -> CommitInfo:
        """Write files in one commit: all of them arrive, or none.

        Args:
            files: Content by path; others stay as they are.
            message: Of the commit.

        Returns:
            What the Hub says about it, `commit_url` and `pr_url` among it.

        Raises:
            SpectralError: If the Hub refuses, or the connection fails.
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
