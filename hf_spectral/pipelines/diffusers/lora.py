"""LoRA weights, by the methods that diffusers' own pipelines have for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import USE_PEFT_BACKEND

from hf_spectral.errors import SpectralError
from hf_spectral.pipelines.diffusers.prompt import prompt_host

#: Methods and properties that the host's pipelines have for LoRA weights.
NAMES = frozenset(name for name in vars(LoraBaseMixin) if not name.startswith("_"))


class NoLoraError(SpectralError, AttributeError):
    """Raised where there are no LoRA weights; `hasattr` and `getattr` take it for a missing attribute."""


class LoraHost:
    """Loads LoRA weights by the host pipeline of a family, which changes the models that it shares."""

    def __init__(self) -> None:
        self._host: Any = None
        self._num_uses = 0

    def attribute(self, pipe: Any, name: str) -> Any:
        """Return what the host pipeline has under a name.

        Args:
            pipe: The spectral pipeline, whose components are changed.
            name: One of `NAMES`.

        Returns:
            A method or a value.

        Raises:
            NoLoraError: If the host loads no LoRA weights for the family, or peft is not installed.
        """
        host = self._host or prompt_host(pipe)
        if not isinstance(host, LoraBaseMixin):
            raise NoLoraError(
                name,
                expected="a denoiser whose own pipeline loads LoRA weights",
                got=pipe.family.class_name,
                fix="Add an adapter to the denoiser itself: pipe.denoiser.add_adapter(...)",
            )
        if not USE_PEFT_BACKEND:
            raise NoLoraError(name, expected="the package peft", got="none", fix="Run: pip install peft")
        shared = host.components.keys() & pipe.components.keys() - {"scheduler", "vae"}
        host.register_modules(**{part: pipe.components[part] for part in shared})
        self._host, self._num_uses = host, self._num_uses + 1
        return getattr(host, name)

    def state(self, models: Iterable[Any]) -> object:
        """Return a value that changes when LoRA weights are loaded or set anew, by this pipeline or by others.

        Args:
            models: Models that may have such weights; anything else is passed over.

        Returns:
            A value to compare.
        """
        models = [model for model in models if isinstance(model, torch.nn.Module)]
        layers: Iterable[Any] = (
            part for model in models for part in model.modules() if hasattr(part, "merged_adapters")
        )
        return self._num_uses, [
            (
                layer.disable_adapters,
                layer.active_adapters,
                list(layer.merged_adapters),
                dict(getattr(layer, "scaling", {})),
            )
            for layer in layers
        ]
