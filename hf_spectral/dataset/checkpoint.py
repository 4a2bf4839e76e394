"""Checkpoints of a fit: a file appears whole or not at all, and only a run of the same settings may read it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_spectral.atomic import replacing, writing
from hf_spectral.checks import require_same
from hf_spectral.dataset.source import Skipped
from hf_spectral.errors import SpectralError
from hf_spectral.fingerprint import WEIGHTS, require_same_weights

_DIGESTS = "digests"
_FIX = "Make room or give another folder, and run the same command again: what was saved is whole"


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far one pass of one process has come.

    Args:
        state: The result of `BasisAccumulator.state_dict`.
        done: Images of the process's share that have been read, skipped ones among them.
        finished: True once the share has come to its end.
        skipped: Images that were left out, in this pass or before it.
        digests: Digests of the images that the process has read, see `Reader`.
    """

    state: dict[str, Any]
    done: int
    finished: bool
    skipped: tuple[Skipped, ...]
    digests: bytes


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One file per pass and process, in one folder.

    Args:
        folder: The folder.
        settings: All settings that the sums depend on, ready for JSON.
        rank: Rank of this process.
    """

    folder: Path
    settings: Mapping[str, Any]
    rank: int

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out for the length of the block; the system frees the lock of a process that dies.

        Yields:
            Nothing.

        Raises:
            SpectralError: If another process holds the lock, or the folder cannot be written.
        """
        lock = filelock.FileLock(self.folder / f"{self.rank:05d}.lock")
        with writing(self.folder, "checkpoint_dir", _FIX, "folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise SpectralError(
                    "checkpoint_dir",
                    expected="a folder that no other process works in",
                    got=f"{self.folder}, which one does",
                    fix="Wait for it, or give another folder",
                ) from error
        try:
            yield
        finally:
            lock.release()

    def load(self, name: str) -> Progress | None:
        """Return the progress of a pass.

        Args:
            name: Name of the pass.

        Returns:
            The progress, or None if none has been saved.

        Raises:
            SpectralError: If the file was written with other settings, which the message names, or is damaged.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                said = json.loads(file.metadata()["hf_spectral"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping.
            digests = tensors.pop(_DIGESTS).numpy().tobytes()
            mine, theirs = json.loads(json.dumps(self.settings)), said["settings"]
            state = {"tensors": tensors, "description": said["description"]}
            skipped = tuple(Skipped(**one) for one in said["skipped"])
            progress = Progress(state, int(said["done"]), bool(said["finished"]), skipped, digests)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise SpectralError(
                "checkpoint_dir",
                expected="files that fit wrote",
                got=f"{path}: {error}",
                fix="Delete it and start anew",
            ) from error
        # Fingerprints of weights agree up to rounding only.
        weights = [settings.get("backbone", {}).pop(WEIGHTS, None) for settings in (theirs, mine)]
        fix = "Use the settings it was started with, or another folder"
        require_same("checkpoint_dir", mine, theirs, "a run of the same settings, ", fix)
        require_same_weights("checkpoint_dir", *weights)
        return progress

    def save(self, name: str, progress: Progress) -> None:
        """Save the progress of a pass; a crash at any moment leaves the previous file or the new one.

        Args:
            name: Name of the pass.
            progress: The progress.

        Raises:
            SpectralError: If the disk is full or cannot be written.
        """
        said = {
            "settings": dict(self.settings),
            "description": progress.state["description"],
            "done": progress.done,
            "finished": progress.finished,
            "skipped": [dataclasses.asdict(one) for one in progress.skipped],
        }
        tensors = {key: tensor.cpu().contiguous() for key, tensor in progress.state["tensors"].items()}
        tensors[_DIGESTS] = torch.from_numpy(np.frombuffer(bytearray(progress.digests), np.uint8))
        with replacing(self._path(name), "checkpoint_dir", _FIX, is_flushed=True) as partial:
            try:
                save_file(tensors, partial, {"hf_spectral": json.dumps(said)})
            except SafetensorError as error:  # Such as that of a full disk.
                full = OSError(str(error))
                raise full from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}-{self.rank:05d}.safetensors"
