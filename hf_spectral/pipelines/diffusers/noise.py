"""The timesteps at which a denoiser is run, and the noise that is added to the latents there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_spectral.checks import is_int, is_number
from hf_spectral.errors import SpectralError
from hf_spectral.families.diffusers import DenoiserFamily

_DEFAULT_NUM_TIMESTEPS = 1000
# The paper draws timesteps from the low-noise quarter of the schedule, where the latents still hold the whole picture.
_DEFAULT_SHARES = (0.05, 0.15, 0.25)


def num_timesteps(scheduler: Any) -> int:
    """Return how many timesteps the denoiser was trained with.

    Args:
        scheduler: The pipeline's scheduler, or None.

    Returns:
        A number, mostly 1000.
    """
    return _DEFAULT_NUM_TIMESTEPS if scheduler is None else scheduler.config.num_train_timesteps


def is_flow(family: DenoiserFamily, scheduler: Any) -> bool:
    """Return whether the denoiser was trained by flow matching, on straight lines from noise to data.

    Args:
        family: Of the denoiser.
        scheduler: The pipeline's scheduler, or None.

    Returns:
        True for flow matching, False for diffusion.
    """
    if family.is_flow:
        return True
    name = type(scheduler).__name__
    return name.startswith("FlowMatch") or getattr(scheduler, "config", {}).get("prediction_type") == "flow_prediction"


def checked_timesteps(
    timesteps: Sequence[float] | float | None, family: DenoiserFamily, scheduler: Any
) -> tuple[float, ...]:
    """Check that timesteps lie in the schedule, and return them.

    Args:
        timesteps: One, several, or None for the default.
        family: Of the denoiser.
        scheduler: The pipeline's scheduler, or None.

    Returns:
        At least one.

    Raises:
        SpectralError: If one lies outside the schedule.
    """
    total = num_timesteps(scheduler)
    if timesteps is None:
        return tuple(round(share * total) for share in _DEFAULT_SHARES)
    steps = tuple(timesteps) if isinstance(timesteps, Iterable) else (timesteps,)
    flows = is_flow(family, scheduler) or _is_preconditioned(scheduler)
    is_kind = is_number if flows else is_int  # Diffusion looks its noise up in a table.
    if not steps or not all(is_kind(step) and 0 <= step < total for step in steps):
        raise SpectralError(
            "timesteps",
            expected=f"{'numbers' if flows else 'integers'} from 0 to {total - 1}, at least one",
            got=list(steps),
            fix=f"Give e.g. timesteps=[{round(total / 20)}, {round(total / 4)}]",
        )
    return tuple(int(step) if is_int(step) else float(step) for step in steps)


def given_generators(
    generator: torch.Generator | list[torch.Generator] | None, num_images: int
) -> list[torch.Generator | None]:
    """Return the generator of the noise of each picture.

    Args:
        generator: One, from which all pictures draw in turn, or one per picture; None.
        num_images: Pictures.

    Returns:
        One per picture; None takes the noise of the picture itself.

    Raises:
        SpectralError: If there are more or fewer than pictures, or they are no generators.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * num_images
    is_list = isinstance(generator, (list, tuple)) and all(isinstance(one, torch.Generator) for one in generator)
    if not is_list or len(generator) != num_images:
        raise SpectralError(
            "generator",
            expected=f"one generator, or one for each of {num_images} pictures",
            got=f"{len(generator)}" if is_list else repr(generator),
            fix="Leave it out and give a seed",
        )
    return list(generator)


def noised(
    latents: Tensor, timestep: float, family: DenoiserFamily, scheduler: Any, generators: list[torch.Generator]
) -> Tensor:
    """Return latents with the noise of one timestep.

    Args:
        latents: Clean ones, of one or several pictures.
        timestep: From 0 (clean) to `num_timesteps`.
        family: Of the denoiser.
        scheduler: The pipeline's scheduler; diffusion needs its table of noise.
        generators: Source of each picture's noise.

    Returns:
        (1 - s) z + s n with s the share of the timesteps for flow matching, (z + s n) / sqrt(s^2 + d^2) with d the
        spread of the data where the scheduler states it, else a z + b n as DDPM defines a and b: samplers with other
        conventions scale their input back to this before the denoiser sees it.
    """
    noise = randn_tensor(latents.shape, generator=generators, device=latents.device, dtype=latents.dtype)
    if is_flow(family, scheduler):
        share = timestep / num_timesteps(scheduler)
        return (1 - share) * latents + share * noise
    if _is_preconditioned(scheduler):
        sigma = _sigma(scheduler, timestep)
        return (latents + sigma * noise) / (sigma**2 + scheduler.config.sigma_data**2) ** 0.5
    ddpm: Any = DDPMScheduler.from_config(scheduler.config)
    return ddpm.add_noise(latents, noise, torch.tensor([int(timestep)], device=latents.device))


def told(timestep: float, scheduler: Any) -> float:
    """Return a timestep in the denoiser's own units.

    Args:
        timestep: From 0 (clean) to `num_timesteps`.
        scheduler: The pipeline's scheduler, or None.

    Returns:
        The timestep itself; where the scheduler states the spread of the data (Karras and others, 2022), what it makes
        of the noise.
    """
    if not _is_preconditioned(scheduler):
        return timestep
    by_sigma: Any = getattr(scheduler, "sigma_to_t", None) or scheduler.precondition_noise
    return float(by_sigma(_sigma(scheduler, timestep)))


def _is_preconditioned(scheduler: Any) -> bool:
    config = getattr(scheduler, "config", {})
    return config.get("sigma_data") is not None and config.get("rho") is not None


def _sigma(scheduler: Any, timestep: float) -> float:
    """Return the standard deviation of the noise at a timestep, between the scheduler's smallest and largest."""
    config, share = scheduler.config, timestep / num_timesteps(scheduler)
    least, most = (config[name] ** (1 / config.rho) for name in ("sigma_min", "sigma_max"))
    return float((least + share * (most - least)) ** config.rho)
