"""ViT-MAE: a class token, then patches; shown the whole image while a capture runs, with every patch in its place."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hf_spectral.families.transformers.base import VisionFamily
from hf_spectral.grid import as_pair
from hf_spectral.restoring import entered, lock, switched, undoing


class _UnmaskedConfig:
    """Stands for a configuration, and answers a mask ratio of 0 to the threads that capture.

    The mask ratio is read from a configuration that all threads share; setting it there would unmask the others too.
    """

    def __init__(self, config: Any) -> None:
        self.original = config
        self.threads: set[int] = set()

    @property
    def mask_ratio(self) -> float:
        """The share of the patches to hide, for the calling thread."""
        return 0.0 if threading.get_ident() in self.threads else self.original.mask_ratio

    def __getattr__(self, name: str) -> Any:
        if name == "original":  # copying asks before the attribute is there
            raise AttributeError(name)
        return getattr(self.original, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A model copied or pickled meanwhile takes the original along.
        return copy.copy, (self.original,)


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoder(VisionFamily):
    """An encoder that hides patches at random, unless it is told not to."""

    @contextlib.contextmanager
    def whole_picture(self, tower: nn.Module) -> Iterator[None]:
        """Let the encoder keep all patches in raster order, in this thread only."""
        embeddings: Any = tower.embeddings
        thread = threading.get_ident()
        handles: list[Any] = []
        with (
            switched([embeddings], "config", _UnmaskedConfig),
            undoing(lambda: embeddings.config.threads.discard(thread)),
            undoing(lambda: [handle.remove() for handle in handles]),
        ):
            embeddings.config.threads.add(thread)
            with entered(lock):
                handles.append(embeddings.register_forward_pre_hook(_ordered_noise(thread), with_kwargs=True))
            yield


def _ordered_noise(thread: int) -> Any:
    """Return a hook that orders the patches, which are shuffled by noise even at a mask ratio of 0."""

    def order(embeddings: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        # A hook is seen by other threads a moment before its registration is complete: kwargs may be missing there.
        if threading.get_ident() != thread or kwargs is None:
            return None
        pixels = args[0] if args else kwargs["pixel_values"]
        patch_height, patch_width = as_pair(embeddings.config.patch_size)
        num_patches = (pixels.shape[-2] // patch_height) * (pixels.shape[-1] // patch_width)
        noise = torch.arange(num_patches, dtype=torch.float32, device=pixels.device).expand(pixels.shape[0], -1)
        return args[:1], {**kwargs, "noise": noise}

    return order


VIT_MAE = MaskedAutoencoder(("vit_mae",), num_prefix=1, example="facebook/vit-mae-base")
