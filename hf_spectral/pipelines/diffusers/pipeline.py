"""The diffusers pipeline: a picture in, eigenvectors of a generative model's attention layers and timesteps out."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from hf_spectral.capture import capture_attention, check_supported
from hf_spectral.checks import require_known, require_positive_int, require_seed
from hf_spectral.errors import SpectralError
from hf_spectral.families.diffusers import Condition, DenoiserFamily, family_of
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.pipelines.diffusers import noise as noise_of
from hf_spectral.pipelines.diffusers import prompt as prompts
from hf_spectral.pipelines.diffusers.generating import GeneratedOutput, generated
from hf_spectral.pipelines.diffusers.latents import (
    check_components,
    check_pathways,
    check_repository,
    encode_image,
    geometry_of,
    half_precision_explained,
    to_pixels,
)
from hf_spectral.pipelines.diffusers.outputs import outputs_of
from hf_spectral.pipelines.diffusers.reading import Reading, digest
from hf_spectral.pipelines.inputs import ImageReader
from hf_spectral.pipelines.outputs import Analysis
from hf_spectral.pipelines.settings import CUT_NAMES, CallSettings, checked_batching, configs_of, over_defaults
from hf_spectral.pipelines.settings import SETTINGS as CALL_SETTINGS
from hf_spectral.records import AttentionRecord, Pathway, SkippedLayer
from hf_spectral.restoring import undoing
from hf_spectral.torch_state import plain_torch

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DiffusionSettings(CallSettings, total=False):
    """Arguments of a call; `SpectralDiffusionPipeline.__call__` describes them."""

    timesteps: Sequence[float] | float | None
    num_noise_samples: int
    prompt: str | None
    generator: torch.Generator | list[torch.Generator] | None
    return_dict: bool


#: Arguments whose defaults `at` sets, besides timesteps, prompt and seed.
SETTINGS = (CALL_SETTINGS - {"seed"}) | {"num_noise_samples", "batch_size", "image_column"}
_OF_GENERATION = CALL_SETTINGS - {"basis", "walk", "resolution", "timeout"}
_ENCODERS = [f"{part}{ending}" for part in ("text_encoder", "tokenizer") for ending in ("", "_2", "_3", "_4")]


class SpectralDiffusionPipeline(ImageReader, DiffusionPipeline):
    """Eigenvectors of all image self-attention layers of a denoiser at several timesteps, one joint problem per image.

    Example:
        >>> from hf_spectral import SpectralDiffusionPipeline
        >>> pipe = SpectralDiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
        >>> pipe("photo.jpg", pathway="where", timesteps=[50, 150, 250]).eigenvectors

    The whole picture is read, its aspect ratio kept (but by DiT, which reads squares: a warning and the `notes` of the
    result say so), sides rounded to what the VAE, the patches and the levels of a UNet divide.

    Args:
        scheduler: Says which noise the denoiser was trained with.
        unet: The denoiser, or None if it is a transformer.
        transformer: The denoiser, or None if it is a UNet.
        vae: Its autoencoder; None for a denoiser of pixels.
        text_encoder: For prompts. Without text encoders an empty prompt is a row of zeros.
        text_encoder_2: For families that have two.
        text_encoder_3: For families that have three.
        text_encoder_4: For families that have four.
        tokenizer: That of `text_encoder`.
        tokenizer_2: That of `text_encoder_2`.
        tokenizer_3: That of `text_encoder_3`.
        tokenizer_4: That of `text_encoder_4`.
    """

    _reading: Reading | None = None  # What `at` has set.
    _told: Mapping[str, Any] = MappingProxyType({})  # Other settings that `at` has set.
    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->text_encoder_4->vae->unet->transformer"
    _optional_components = ["unet", "transformer", "vae", *_ENCODERS]  # noqa: RUF012 - the host's own form

    def __init__(
        self,
        scheduler: Any,
        unet: Any = None,
        transformer: Any = None,
        vae: Any = None,
        text_encoder: Any = None,
        text_encoder_2: Any = None,
        text_encoder_3: Any = None,
        text_encoder_4: Any = None,
        tokenizer: Any = None,
        tokenizer_2: Any = None,
        tokenizer_3: Any = None,
        tokenizer_4: Any = None,
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
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer, vae=vae)
        read_by = (text_encoder, text_encoder_2, text_encoder_3, text_encoder_4)
        cut_by = (tokenizer, tokenizer_2, tokenizer_3, tokenizer_4)
        self.register_modules(**dict(zip(_ENCODERS, (*read_by, *cut_by), strict=True)))
        check_components(self.family, self.denoiser, vae, scheduler)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> SpectralDiffusionPipeline:
        """Load a pipeline as the host does, once its index and the denoiser's configuration show that it can be read.

        Args:
            pretrained_model_name_or_path: Repository id or folder.
            **kwargs: As for `DiffusionPipeline.from_pretrained`.

        Returns:
            The pipeline.

        Raises:
            SpectralError: If a part is missing that the denoiser needs.
            UnsupportedBackboneError: If its denoiser cannot be read, before any weight is downloaded or loaded.
        """
        check_repository(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

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

    @plain_torch()
    def __call__(self, image: Any, **settings: Unpack[DiffusionSettings]) -> Any:
        """Analyze one picture, or many.

        Args:
            image: A path, URL, PIL image, numpy array or bytes; or a list of them.
            **settings: Those of `SpectralPathwaysPipeline.__call__`, and:

                - `timesteps`: where on the way from data (0) to noise the denoiser is run; all enter one problem. None
                  takes those of `at`, or 5, 15 and 25 percent of the schedule. Memory grows with their number for the
                  affinities `cosine` and `knn`.
                - `num_noise_samples` (1): how often to draw noise at each timestep.
                - `prompt`: None takes that of `at`, or the empty prompt, which suits most images best.
                - `seed`: seeds the start of the solver and, together with the pixels of the image, its noise; None
                  takes that of `at`, or 0.
                - `generator`: source of the noise; a list holds one per image. One for many images is drawn from in
                  turn.
                - `layer_weights` and `heads`: see `SpectralConfig`. All timesteps and noise samples of a layer share
                  its weight.
                - `basis`: fitted at the same timesteps, prompt and seed.
                - `return_dict` (True): False returns tuples instead of outputs; `as_json=True` gives dicts.

        Returns:
            `SpectralDiffusionOutput`, for a list of pictures a list; with `pathway="both"` a dict of two by pathway.

        Raises:
            SpectralError: If an argument is out of range, or a picture cannot be read.
        """
        require_known(settings, DiffusionSettings.__annotations__)
        said: dict[str, Any] = {"num_noise_samples": 1, **self._told, **settings}
        own = {name: said[name] for name in CALL_SETTINGS & settings.keys() - {"seed"}}
        found = over_defaults({name: self._told[name] for name in CALL_SETTINGS & self._told.keys()}, own)
        seed = found["seed"] = self._seed if said.get("seed") is None else said["seed"]
        configs, basis = configs_of(found), found.get("basis")
        if basis is None:
            check_pathways(self.family, [config.pathway for config in configs])
        num_noise_samples = require_positive_int("num_noise_samples", said["num_noise_samples"])
        is_many = isinstance(image, (list, tuple))
        images = list(image) if is_many else [image]
        generators = noise_of.given_generators(said.get("generator"), len(images))
        if not images:
            return []
        reading = self._reading_at(said.get("timesteps"), said.get("prompt"), seed)
        if basis is not None:
            basis.check_backbone(reading.describe(self, basis.backbone.get("resolution")))
        cut = {name: found[name] for name in CUT_NAMES & found.keys()}
        outputs = []
        with undoing(self.maybe_free_model_hooks):
            for source, generator in zip(images, generators, strict=True):
                prepared = self.preprocess(source, found.get("resolution"), found.get("timeout"))
                analysis = Analysis(found, 1)
                steps = self.progress_bar(reading.timesteps * num_noise_samples)
                reading.record(self, [prepared], analysis.add, analysis.layers, [generator], steps)
                (results,) = analysis.results([prepared])
                outputs.append(outputs_of(results, prepared, reading.timesteps, said.get("return_dict", True), **cut))
        return outputs if is_many else outputs[0]

    @plain_torch()
    def generate(self, prompt: str, steps: Sequence[int] | None = None, **settings: Any) -> GeneratedOutput:
        """Make a picture from a prompt by the host's own pipeline, and solve one problem per denoising step.

        Example:
            >>> made = pipe.generate("a cat on a sofa", steps=[5, 15, 25], num_inference_steps=28, pathway="what")
            >>> made.image, made.outputs[0].eigenvectors

        Args:
            prompt: What to make.
            steps: Denoising steps, the first being 0; None means all.
            **settings: Those of a call that are of the problem and of segmentation; all others, such as
                `num_inference_steps`, `guidance_scale`, `height`, `width` and `generator`, are handed to the host.

        Returns:
            The picture, and for each step what a call returns for a picture.

        Raises:
            SpectralError: If the denoiser reads no prompt, a setting is out of range, or a step does not come.
        """
        own = {name: settings[name] for name in settings.keys() & _OF_GENERATION}
        kept = {name: one for name, one in self._told.items() if name in _OF_GENERATION}
        found = over_defaults({**kept, "seed": self._seed}, own)
        check_pathways(self.family, [config.pathway for config in configs_of(found)])
        call = {name: one for name, one in settings.items() if name not in own}
        with undoing(self.maybe_free_model_hooks):
            return generated(self, prompt, steps, found, call)

    @plain_torch()
    def at(
        self,
        timesteps: Sequence[float] | float | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> SpectralDiffusionPipeline:
        """Return the pipeline with other defaults, for `hf_spectral.fit`, `transform` and calls.

        Example:
            >>> basis = hf_spectral.fit(pipe.at([50, 150, 250]), "photos/", pathway="what")

        Args:
            timesteps: As in a call; all enter one problem over the dataset. None keeps those of this pipeline.
            prompt: As in a call; encoded now. None keeps that of this pipeline.
            seed: Of the noise; every picture's own depends on its pixels too, and on nothing else. None keeps it. It is
                the default seed of calls, `fit` and `layer_report` too.
            **settings: Defaults of other arguments of a call, `fit`, `transform` and `layer_report`: `resolution`,
                `num_eigenvectors`, `layers`, `batch_size`, ...

        Returns:
            A pipeline that shares everything else with this one, which stays as it is.

        Raises:
            SpectralError: If a timestep lies outside the schedule or is there twice, the prompt cannot be read, or a
                setting is unknown or out of range.
        """
        require_known(settings, SETTINGS)
        configs_of(settings)
        settings = checked_batching(settings)
        reading = self._reading_at(timesteps, prompt, self._seed if seed is None else seed)
        reading.require_each_timestep_once()
        found = copy.copy(self)
        found._reading, found._told = reading, {**self._told, **settings}
        return found

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings that `at` has set, which stand in for what a call leaves out."""
        return {**self._told, "seed": self._seed}

    def _encode(self, image: Image.Image, read_size: tuple[int, int]) -> dict[str, Any]:
        pixels = to_pixels(image, read_size, 3 if self.vae is not None else self.denoiser.config.in_channels)
        with half_precision_explained():
            latents = encode_image(self.vae, pixels.to(self._execution_device), self.denoiser, self.family)
        return {"latents": latents, "digest": digest(pixels)}  # The digest tells images apart.

    @staticmethod
    def _shape(prepared: Mapping[str, Any]) -> Any:
        return prepared["latents"].shape, prepared["read_size"]

    @plain_torch()
    def encode_prompt(self, prompt: str = "") -> Condition:
        """Encode a prompt.

        Args:
            prompt: The prompt.

        Returns:
            Its embeddings.

        Raises:
            SpectralError: If the family reads no prompt, or its text encoders are not loaded, or it is too long.
        """
        return prompts.encode_prompt(self.family, self.components, self.denoiser, prompt, self._execution_device)

    @plain_torch()
    def records(
        self,
        group: Sequence[Mapping[str, Any]],
        on_record: Callable[[AttentionRecord], object],
        layers: Iterable[int] | None = None,
    ) -> list[SkippedLayer]:
        """Run the denoiser once per timestep (see `at`), and pass on each attention layer as it arrives.

        Args:
            group: Pictures of one size, as `preprocess` returned them.
            on_record: Receives the records of all pictures of the group, one at a time; their `timestep` is one of
                `at`, whatever units the denoiser counts in.
            layers: Indices of the layers to record; None means all.

        Returns:
            Layers that attend but gave no record, with reasons.

        Raises:
            SpectralError: If a layer holds NaN, or there is no such layer.
        """
        return self._defaults.record(self, group, on_record, layers)

    def check_reading(
        self, resolution: int | None = None, layers: Iterable[int] | None = None, pathways: Sequence[Pathway] = ()
    ) -> None:
        """Check settings before any picture is read.

        Args:
            resolution: Longer side in pixels, or None.
            layers: Indices of layers, or None.
            pathways: Pathways that will be analyzed.

        Raises:
            SpectralError: If the denoiser reads no such size, has no such layer or serves no such pathway, or the
                prompt cannot be read.
        """
        check_pathways(self.family, pathways)
        self._geometry.size_for(1, 10**6, resolution)
        with capture_attention(self.denoiser, layers=layers):
            pass
        self._defaults.require_each_timestep_once()

    def describe_backbone(self, resolution: int | None = None) -> dict[str, Any]:
        """Describe the models and what `at` has set, as a basis stores it: see `Reading.describe`."""
        return self._defaults.describe(self, resolution)

    def _reading_at(self, timesteps: Sequence[float] | float | None, prompt: str | None, seed: int) -> Reading:
        """Return how pictures are read; what is None comes from `at`, or else from the defaults."""
        kept, seed = self._reading, require_seed(seed)
        if timesteps is None and kept is not None:
            steps = kept.timesteps
        else:
            steps = noise_of.checked_timesteps(timesteps, self.family, self.scheduler)
        if prompt is None and kept is not None:
            return Reading(steps, kept.prompt, seed, kept.condition)
        return Reading(steps, prompt or "", seed, self.encode_prompt("" if prompt is None else prompt))

    @property
    def _defaults(self) -> Reading:
        if self._reading is None:  # Encoded once, not once per batch.
            self._reading = self._reading_at(None, None, 0)
        return self._reading

    @property
    def _seed(self) -> int:
        return 0 if self._reading is None else self._reading.seed

    @property
    def _encoder(self) -> Any:
        return self.denoiser if self.vae is None else self.vae

    @property
    def _geometry(self) -> InputGeometry:
        return geometry_of(self.family, self.denoiser, self.vae)

    @property
    def family(self) -> DenoiserFamily:
        """The family of the denoiser."""
        return family_of(type(self.denoiser))
