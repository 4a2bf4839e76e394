"""The diffusers pipeline: a picture in, eigenvectors of a generative model's attention layers and timesteps out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from hf_spectral.capture import capture_attention, check_supported
from hf_spectral.capture.diffusers_layouts import FAMILIES
from hf_spectral.config import SpectralConfig, require_positive_int
from hf_spectral.errors import SpectralError
from hf_spectral.graph import ProblemBuilder
from hf_spectral.pipelines.images import read_image
from hf_spectral.pipelines.settings import as_solver, configs_of
from hf_spectral.records import AttentionRecord
from hf_spectral.result import SpectralResult
from hf_spectral.solvers import Solver, solve

try:
    from diffusers import DiffusionPipeline
except ImportError as error:
    raise SpectralError(
        "model", expected="the extra [diffusers]", got=str(error), fix="Run: pip install 'hf-spectral[diffusers]'"
    ) from error

from hf_spectral.pipelines import diffusers_conditions as conditions
from hf_spectral.pipelines import diffusers_noise as noise_of
from hf_spectral.pipelines.diffusers_latents import (
    check_components,
    check_pathways,
    encode_image,
    half_precision_explained,
    size_for,
    to_pixels,
)
from hf_spectral.pipelines.diffusers_outputs import outputs_of


class SpectralDiffusionPipeline(DiffusionPipeline):
    """Eigenvectors of all image self-attention layers of a denoiser over several timesteps, one joint problem an image.

    Example:
        >>> from hf_spectral import SpectralDiffusionPipeline
        >>> pipe = SpectralDiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
        >>> pipe("photo.jpg", pathway="where", timesteps=[50, 150, 250]).eigenvectors

    The whole picture is read, its aspect ratio kept (but by DiT, which reads squares), sides rounded to what the VAE,
    the patches and the levels of a UNet divide.

    Args:
        scheduler: Says which noise the denoiser was trained with.
        unet: The denoiser, or None if it is a transformer.
        transformer: The denoiser, or None if it is a UNet.
        vae: Its autoencoder; None for a denoiser of pixels.
        text_encoder: For prompts. Without text encoders an empty prompt is a row of zeros.
        text_encoder_2: For families that have two.
        text_encoder_3: For families that have three.
        tokenizer: That of `text_encoder`.
        tokenizer_2: That of `text_encoder_2`.
        tokenizer_3: That of `text_encoder_3`.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->vae->unet->transformer"
    _optional_components = [  # noqa: RUF012 - the host's own form
        "unet",
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    ]

    def __init__(
        self,
        scheduler: Any,
        unet: Any = None,
        transformer: Any = None,
        vae: Any = None,
        text_encoder: Any = None,
        text_encoder_2: Any = None,
        text_encoder_3: Any = None,
        tokenizer: Any = None,
        tokenizer_2: Any = None,
        tokenizer_3: Any = None,
    ) -> None:
        super().__init__()
        denoisers = [one for one in (unet, transformer) if one is not None]
        if len(denoisers) != 1:
            raise SpectralError(
                "transformer",
                expected="one denoiser, a `unet` or a `transformer`",
                got="none" if not denoisers else "both",
                fix="Load a text-to-image or class-to-image pipeline",
            )
        check_supported(denoisers[0])
        self.register_modules(
            scheduler=scheduler,
            unet=unet,
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            text_encoder_3=text_encoder_3,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            tokenizer_3=tokenizer_3,
        )
        check_components(self._family, self.denoiser, vae, scheduler)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, dtype: torch.dtype | None = None) -> SpectralDiffusionPipeline:
        """Build the pipeline around the components of another one, which stays as it is.

        Args:
            pipeline: A pipeline of a supported family, e.g. `StableDiffusionPipeline`.
            dtype: What to convert the shared components to; None, unlike in the host's own method, leaves them alone.

        Returns:
            A pipeline that shares the components.
        """
        names = set(inspect.signature(cls.__init__).parameters) - {"self"}
        found = cls(**{name: pipeline.components.get(name) for name in names})
        if name_or_path := pipeline.config.get("_name_or_path"):
            found.register_to_config(_name_or_path=name_or_path)
        return found if dtype is None else found.to(dtype=dtype)

    @property
    def denoiser(self) -> Any:
        """The `unet` or the `transformer`."""
        return self.unet if self.unet is not None else self.transformer

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        pathway: Literal["where", "what", "both"] = "what",
        timesteps: Sequence[float] | float | None = None,
        num_noise_samples: int = 1,
        prompt: str = "",
        num_eigenvectors: int = 16,
        num_segments: int | Literal["auto"] | None = "auto",
        layers: Sequence[int] | None = None,
        solver: str | Solver | None = None,
        affinity: str | None = None,
        resolution: int | None = None,
        seed: int = 0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Analyze one picture, or many.

        Args:
            image: A path, URL, PIL image, numpy array or bytes; or a list of them.
            pathway: "where" (queries with keys), "what" (values with values), or "both".
            timesteps: Where on the way from data (0) to noise the denoiser is looked at; all enter one problem. None
                takes 5, 15 and 25 percent of the schedule.
            num_noise_samples: How often to draw noise at each timestep.
            prompt: What the denoiser is told; most look best at a picture without.
            num_eigenvectors: Eigenvectors to return, the trivial one among them.
            num_segments: A number, "auto", or None for no segmentation.
            layers: Indices of the layers, in call order, negative ones counted from the end; None means all.
            solver: "eigen", "gradient" or a solver object.
            affinity: See `SpectralConfig`; None takes its default. Memory grows with timesteps for `cosine` and `knn`.
            resolution: Longer side in pixels at which the picture is read; None takes the denoiser's own.
            seed: Of the solver's start and, without `generator`, of the noise: then the same for every picture.
            generator: Source of the noise; in a list one a picture. One for many pictures is drawn from in turn.
            return_dict: False gives tuples in the place of outputs.

        Returns:
            `SpectralDiffusionOutput`, for a list of pictures a list; with `pathway="both"` a dict of two by pathway.

        Raises:
            SpectralError: If an argument is out of range, or a picture cannot be read.
        """
        is_many = isinstance(image, (list, tuple))
        images = list(image) if is_many else [image]
        settings = {"pathway": pathway, "num_eigenvectors": num_eigenvectors, "affinity": affinity, "seed": seed}
        configs = configs_of(settings | {"layers": None if layers is None else tuple(layers)})
        check_pathways(self._family, [config.pathway for config in configs])
        solver = None if solver is None else as_solver(solver)
        steps = noise_of.checked_timesteps(timesteps, self._family, self.scheduler)
        require_positive_int("num_noise_samples", num_noise_samples)
        generators = noise_of.generators(generator, seed, len(images))
        condition = self.encode_prompt(prompt) if images else None
        run: dict[str, Any] = {"timesteps": steps, "num_noise_samples": num_noise_samples, "condition": condition}
        outputs = []
        for source, noise in zip(images, generators, strict=True):
            prepared = self.preprocess(source, resolution)
            results = self._solved(prepared, configs, solver, generator=noise, **run)
            outputs.append(outputs_of(results, prepared, steps, num_segments, return_dict))
        self.maybe_free_model_hooks()
        return outputs if is_many else outputs[0]

    def preprocess(self, image: Any, resolution: int | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Read one picture and encode it.

        Args:
            image: As in a call.
            resolution: Longer side in pixels, or None.
            timeout: Seconds to wait for a URL, or None.

        Returns:
            `latents`, float32; `read_size`, at which it was read, and `size`, its own, (height, width) in pixels.

        Raises:
            SpectralError: If the picture cannot be read, or its latents are not finite.
        """
        picture = read_image(image, timeout)
        size = (picture.height, picture.width)
        read_size = size_for(self._family, self.denoiser, self.vae, size, resolution)
        pixels = to_pixels(picture, read_size).to(self._execution_device)
        with half_precision_explained():
            latents = encode_image(self.vae, pixels, self.denoiser, self._family)
        return {"latents": latents, "read_size": read_size, "size": size}

    def encode_prompt(self, prompt: str = "") -> conditions.Condition:
        """Encode a prompt.

        Args:
            prompt: The prompt.

        Returns:
            Its embeddings.

        Raises:
            SpectralError: If the family reads no prompt, or its text encoders are not loaded, or it is too long.
        """
        return conditions.encode_prompt(self._family, self.components, self.denoiser, prompt, self._execution_device)

    @torch.no_grad()
    def records(
        self,
        prepared: Mapping[str, Any],
        on_record: Callable[[AttentionRecord], object],
        layers: Iterable[int] | None = None,
        timesteps: Sequence[float] | float | None = None,
        num_noise_samples: int = 1,
        condition: conditions.Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Run the denoiser once a timestep and noise sample, and hand on each attention layer as it arrives.

        Args:
            prepared: What `preprocess` gave.
            on_record: Receives the records; one is held at a time.
            layers: Indices of the layers to record; None means all.
            timesteps: As in a call.
            num_noise_samples: As in a call.
            condition: What `encode_prompt` gave; None stands for the empty prompt.
            generator: Source of the noise; None seeds one with 0.

        Raises:
            SpectralError: If a layer holds NaN, there is no such layer, or a timestep lies outside the schedule.
        """
        steps = noise_of.checked_timesteps(timesteps, self._family, self.scheduler)
        condition = self.encode_prompt() if condition is None else condition
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        with (
            half_precision_explained(),
            self.progress_bar(total=len(steps) * num_noise_samples) as bar,
            capture_attention(self.denoiser, on_record, layers),
        ):
            for step in steps * num_noise_samples:
                self._run(prepared, step, condition, generator)
                bar.update()

    def _solved(
        self, prepared: Mapping[str, Any], configs: list[SpectralConfig], solver: Solver | None, **run: Any
    ) -> list[SpectralResult]:
        builders = [ProblemBuilder(config) for config in configs]

        def consume(record: AttentionRecord) -> None:
            for builder in builders:
                builder.add(record)

        self.records(prepared, consume, configs[0].layers, **run)
        return [solve(builder.build(), solver) for builder in builders]

    def _run(
        self, prepared: Mapping[str, Any], step: float, condition: conditions.Condition, generator: torch.Generator
    ) -> None:
        share = step / noise_of.num_timesteps(self.scheduler)
        noised = noise_of.noised(prepared["latents"], step, self._family, self.scheduler, generator)
        timestep = torch.tensor([step], device=noised.device)
        size = prepared["read_size"]
        arguments = (self._family, self.denoiser, noised, share, timestep, condition, size)
        self.denoiser(**conditions.forward_arguments(*arguments), return_dict=False)

    @property
    def _family(self) -> str:
        return next(one.__name__ for one in type(self.denoiser).__mro__ if one.__name__ in FAMILIES)
