"""The one backbone in memory, behind a lock, and the results it gives."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import re
import threading
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import hf_spectral
from hf_spectral import (
    AttentionRecord,
    SpectralBasis,
    SpectralConfig,
    SpectralError,
    SpectralPathwaysPipeline,
    TokenAffinity,
    token_affinity,
    vision_tower,
)
from spaces_app.hosting import on_gpu
from spaces_app.settings import DEFAULT_RESOLUTION, Settings

#: Tokens along the longer side: 80 x 80 make a dense affinity of 164 MB.
MAX_TOKENS = 80
#: Weights of a backbone that a visitor names.
MAX_WEIGHT_BYTES = 2 << 30
#: Number of results for examples that are kept, about three megabytes each.
MAX_KEPT = 24
# Of the package that carries the Hub's requests: the base of the Hub's own errors, and of those of its connection.
_HTTP_ERROR: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class Engine:
    """Holds one backbone, one basis, and the layers of one picture; a request for others replaces them.

    Args:
        model: Default backbone: repository or folder; None takes that of `hf_spectral.pipeline`.
        basis: Repository or folder of a basis that visitors may ask for by this name, or None.
        allow_folders: True lets visitors name folders of this machine, not repositories only.
        listed: Repositories that the owner offers, whatever their size.
        examples: Pictures whose results are kept, at most `MAX_KEPT`; those of a visitor's own pictures are not.
    """

    def __init__(
        self,
        model: str | None = None,
        basis: str | None = None,
        allow_folders: bool = False,
        listed: Container[str] = (),
        examples: Iterable[Image.Image] = (),
    ) -> None:
        self._default = model
        self._own = {name for name in (model, basis) if name}
        self._allow_folders = allow_folders
        self._listed = listed
        self._examples = {_digest(one) for one in examples}
        self._kept: collections.OrderedDict[tuple[bytes, Settings], dict[str, Any]] = collections.OrderedDict()
        self._resolutions: dict[tuple[Any, ...], int | None] = {}
        self._lock = threading.RLock()
        self._pipe: tuple[str, Any] | None = None
        self._load_basis = functools.lru_cache(maxsize=1)(self._read_basis)
        self._records: tuple[tuple[Any, ...], list[AttentionRecord]] | None = None
        self._solve_on_gpu, self._compare_on_gpu = on_gpu(self._solve), on_gpu(self._compare)

    def analyze(self, picture: Image.Image, settings: Settings) -> dict[str, dict[str, Any]]:
        """Find eigenvectors and segments.

        Args:
            picture: In RGB.
            settings: The visitor's.

        Returns:
            The outputs of the pipeline by pathway; with a basis, only for the pathway of the basis.

        Raises:
            SpectralError: If the backbone or the basis cannot be loaded, or do not fit.
        """
        key = _digest(picture), settings
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            self._ready(settings)  # Here, so that what is loaded stays where `_solve` runs in a fork.
            found = self._solve_on_gpu(picture, settings)
            if key[0] in self._examples:
                # A mask per segment is most of an output, and the page makes its own.
                self._kept[key] = {
                    pathway: {name: value for name, value in one.items() if name != "segments"}
                    for pathway, one in found.items()
                }
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            return found

    def _solve(self, picture: Image.Image, settings: Settings) -> dict[str, dict[str, Any]]:
        pipe, basis, resolution = self._ready(settings)
        call: dict[str, Any] = {"resolution": resolution, "num_segments": settings.num_segments, "return_result": True}
        if basis is not None:
            return {basis.config.pathway: pipe(picture, basis=basis, **call)}
        call |= {"pathway": settings.pathway, "num_eigenvectors": settings.num_eigenvectors + 1}
        output = pipe(picture, **call)
        return output if settings.pathway == "both" else {settings.pathway: output}

    def affinity(
        self, picture: Image.Image, settings: Settings, position: tuple[float, float]
    ) -> dict[str, TokenAffinity]:
        """Return the affinities of one token.

        Args:
            picture: In RGB.
            settings: The visitor's.
            position: How far down and how far right, each from 0 to 1.

        Returns:
            Its affinities, by pathway.

        Raises:
            SpectralError: If the backbone cannot be loaded, or has no layer for the pathway.
        """
        with self._lock:
            self._ready(settings)
            return self._compare_on_gpu(picture, settings, position)

    def _compare(
        self, picture: Image.Image, settings: Settings, position: tuple[float, float]
    ) -> dict[str, TokenAffinity]:
        pipe, basis, resolution = self._ready(settings)
        pathway = settings.pathway if basis is None else basis.config.pathway
        key = (settings.model, resolution, _digest(picture))
        if self._records is None or self._records[0] != key:
            self._records = None
            records: list[AttentionRecord] = []
            pipe.records([pipe.preprocess(picture, resolution)], records.append)
            self._records = (key, records)
        configs = [SpectralConfig(name) for name in ("where", "what") if pathway in (name, "both")]
        return {one.pathway: token_affinity(self._records[1], position, one) for one in configs}

    def resolved(self, settings: Settings) -> Settings:
        """Return settings with the resolution that is taken where the visitor leaves it to the backbone.

        Args:
            settings: The visitor's.

        Returns:
            The same, their `resolution` a number, or None for the backbone's own.

        Raises:
            SpectralError: As for `analyze`.
        """
        key = settings.model, settings.basis, settings.resolution
        with self._lock:
            if key not in self._resolutions:
                self._resolutions[key] = self._ready(settings)[2]
            return dataclasses.replace(settings, resolution=self._resolutions[key])

    def basis(self, name: str) -> SpectralBasis:
        """Return a basis.

        Args:
            name: Its repository, or its folder where that is allowed.

        Returns:
            The basis.

        Raises:
            SpectralError: If it cannot be loaded.
        """
        with self._lock:
            return self._load_basis(name)

    def _read_basis(self, name: str) -> SpectralBasis:
        self._check_name("basis", name)
        return SpectralBasis.from_pretrained(name)

    def warm_up(self, model: str, basis: str | None) -> None:
        """Load a backbone, and a basis.

        Args:
            model: Its name, or "" for the default.
            basis: Its name, or None.

        Raises:
            SpectralError: If one of them cannot be loaded.
        """
        with self._lock:
            self._load(model)
            if basis:
                self.basis(basis)

    # What follows takes no lock: it runs in the fork too.

    def _load(self, name: str) -> Any:
        if self._pipe is not None and self._pipe[0] == name:
            return self._pipe[1]
        options: dict[str, Any] = {}
        if name and name not in self._own and name not in self._listed:
            self._check_name("model", name)
            files = [path.name for path in Path(name).glob("*")] or _checked_files(name)
            # A stranger's weights may be in a format that can run code; each host takes this word in its own place.
            safe = {"use_safetensors": True}
            options = safe if "model_index.json" in files else {"model_kwargs": safe}
        self._pipe = self._records = None  # Memory for one backbone, not for two.
        pipe = hf_spectral.pipeline(name or self._default, **options)
        if not isinstance(pipe, SpectralPathwaysPipeline):
            pipe.set_progress_bar_config(disable=True)
        self._pipe = (name, pipe)
        return pipe

    def _ready(self, settings: Settings) -> tuple[Any, SpectralBasis | None, int | None]:
        """Return the backbone, the basis, and the resolution at which pictures are read."""
        pipe, resolution = self._load(settings.model), cast(Any, settings.resolution)
        basis = self._load_basis(settings.basis) if settings.basis else None
        if basis is not None:
            resolution = basis.backbone.get("resolution") if resolution in (None, "auto") else resolution
        elif resolution == "auto":
            resolution = DEFAULT_RESOLUTION if _reads_well(pipe, DEFAULT_RESOLUTION) else None
        _check_tokens(pipe, resolution)
        return pipe, basis, resolution

    def _check_name(self, argument: str, name: str) -> None:
        is_folder = Path(name).exists()
        if name in self._own or (is_folder and self._allow_folders):
            return
        if is_folder or not _REPOSITORY.fullmatch(name):
            raise SpectralError(
                argument,
                expected="a repository of the Hub, such as facebook/dinov2-base",
                got=repr(name[:80]),
                fix="Write its user and its name, with a slash between them",
            )


def _digest(picture: Image.Image) -> bytes:
    return hashlib.sha256(b"%d %d " % picture.size + picture.tobytes()).digest()


def _pixels_per_token(pipe: Any) -> int:
    if not isinstance(pipe, SpectralPathwaysPipeline):
        return 8  # Of the usual VAE, without patches.
    config: Any = vision_tower(pipe.model).config
    patch = getattr(config, "patch_stride", None) or getattr(config, "patch_size", None) or 8
    return patch if isinstance(patch, int) else min(patch)


def _check_tokens(pipe: Any, resolution: int | None) -> None:
    size = _pixels_per_token(pipe)
    if resolution is not None and resolution > MAX_TOKENS * size:
        raise SpectralError(
            "resolution",
            expected=f"at most {MAX_TOKENS * size} pixels, for a backbone that cuts patches of {size}",
            got=resolution,
            fix="Choose a lower one",
        )


def _reads_well(pipe: Any, resolution: int) -> bool:
    """Return whether a backbone reads pictures of a size, and not as slowly as a generative model would."""
    if not isinstance(pipe, SpectralPathwaysPipeline) or resolution > MAX_TOKENS * _pixels_per_token(pipe):
        return False
    try:
        pipe.check_reading(resolution)
    except SpectralError:  # It reads one size only.
        return False
    return True


def _checked_files(repository: str) -> list[str]:
    """Return the names of a repository's files, once their sizes are known to be small."""
    try:
        files = HfApi().model_info(repository, files_metadata=True).siblings or []
    except (OSError, _HTTP_ERROR) as error:
        raise SpectralError(
            "model",
            expected="a public backbone on the Hub",
            got=f"no answer for {repository!r}",
            fix="Check its name, or try again later",
        ) from error
    size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    if not 0 < size <= MAX_WEIGHT_BYTES:
        raise SpectralError(
            "model",
            expected=f"weights as safetensors, of at most {MAX_WEIGHT_BYTES >> 30} GiB",
            got=f"{size / 2**30:.1f} GiB of them",
            fix="Choose a smaller backbone",
        )
    return [file.rfilename for file in files]
