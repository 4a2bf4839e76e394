"""The one backbone in memory, behind a lock, and its answers."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from typing import Any

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
from spaces_app.settings import BACKBONES, Settings

#: Tokens along the longer side: 80 x 80 make a dense affinity of 164 MB.
MAX_TOKENS = 80
#: Weights of a backbone that a visitor names.
MAX_WEIGHT_BYTES = 2 << 30
# Of the package that carries the Hub's requests: the base of the Hub's own errors, and of those of its connection.
_HTTP_ERROR: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class Engine:
    """Holds one backbone, one basis, and the layers of one picture; a request for others replaces them.

    Args:
        model: Default backbone: repository or folder; None takes that of `hf_spectral.pipeline`.
        basis: Repository or folder of a basis that visitors may ask for by this name, or None.
        allow_folders: True lets visitors name folders of this machine, not repositories only.
    """

    def __init__(self, model: str | None = None, basis: str | None = None, allow_folders: bool = False) -> None:
        self._default = model
        self._own = {name for name in (model, basis) if name}
        self._allow_folders = allow_folders
        self._lock = threading.RLock()
        self._pipe: tuple[str, SpectralPathwaysPipeline] | None = None
        self._basis: tuple[str, SpectralBasis] | None = None
        self._records: tuple[tuple[Any, ...], list[AttentionRecord]] | None = None

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
        with self._lock:
            pipe, basis, resolution = self._ready(settings)
            call: dict[str, Any] = {
                "num_segments": settings.num_segments,
                "resolution": resolution,
                "return_result": True,
            }
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
            pipe, basis, resolution = self._ready(settings)
            pathway = settings.pathway if basis is None else basis.config.pathway
            key = (settings.model, resolution, picture.size, hashlib.sha256(picture.tobytes()).digest())
            if self._records is None or self._records[0] != key:
                self._records = None
                records: list[AttentionRecord] = []
                pipe.records([pipe.preprocess(picture, resolution)], records.append)
                self._records = (key, records)
            configs = [SpectralConfig(name) for name in ("where", "what") if pathway in (name, "both")]
            return {one.pathway: token_affinity(self._records[1], position, one) for one in configs}

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
            if self._basis is None or self._basis[0] != name:
                self._check_name("basis", name)
                self._basis = (name, SpectralBasis.from_pretrained(name))
            return self._basis[1]

    def warm_up(self, basis: str | None) -> None:
        """Load the default backbone, and a basis.

        Args:
            basis: Its name, or None.

        Raises:
            SpectralError: If one of them cannot be loaded.
        """
        with self._lock:
            self._load("")
            if basis:
                self.basis(basis)

    def _load(self, name: str) -> SpectralPathwaysPipeline:
        if self._pipe is not None and self._pipe[0] == name:
            return self._pipe[1]
        if name:
            self._check_name("model", name)
        self._pipe = self._records = None  # Memory for one backbone, not for two.
        options: dict[str, Any] = {}
        if name and name not in self._own:
            # A stranger's weights may be large, and in no format that can run code.
            options["model_kwargs"] = {"use_safetensors": True}
            if name not in BACKBONES.values() and not Path(name).is_dir():
                _check_size(name)
        pipe = hf_spectral.pipeline(name or self._default, **options)
        self._pipe = (name, pipe)
        return pipe

    def _ready(self, settings: Settings) -> tuple[SpectralPathwaysPipeline, SpectralBasis | None, int | None]:
        """Return the backbone, the basis, and the resolution at which pictures are read."""
        pipe, resolution = self._load(settings.model), settings.resolution
        basis = self.basis(settings.basis) if settings.basis else None
        if basis is not None:
            resolution = resolution or basis.backbone.get("resolution")
        self._check_tokens(pipe, resolution)
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

    @staticmethod
    def _check_tokens(pipe: SpectralPathwaysPipeline, resolution: int | None) -> None:
        config: Any = vision_tower(pipe.model).config
        patch = getattr(config, "patch_stride", None) or config.patch_size
        patch = patch if isinstance(patch, int) else min(patch)
        if resolution is not None and resolution > MAX_TOKENS * patch:
            raise SpectralError(
                "resolution",
                expected=f"at most {MAX_TOKENS * patch} pixels, for a backbone that cuts patches of {patch}",
                got=resolution,
                fix="Choose a lower one",
            )


def _check_size(repository: str) -> None:
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
