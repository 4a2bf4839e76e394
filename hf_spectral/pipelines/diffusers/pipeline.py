"""The diffusers pipeline: a picture in, eigenvectors of a generative model's attention layers and timesteps out."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args, overload

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import FromSingleFileMixin
from diffusers.loaders.single_file_utils import SingleFileComponentError
from PIL import Image
from transformers.utils.hub import extract_commit_hash

from hf_spectral.capture import capture_attention, check_supported
from hf_spectral.checks import require_known, require_one_of, require_positive_int, require_seed
from hf_spectral.errors import SpectralError
from hf_spectral.families.diffusers import Condition, DenoiserFamily, family_of
from hf_spectral.families.sizes import InputGeometry
from hf_spectral.kept import Published
from hf_spectral.pipelines.backbone import public_name
from hf_spectral.pipelines.diffusers import latents as latents_of
from hf_spectral.pipelines.diffusers import noise as noise_of
from hf_spectral.pipelines.diffusers import prompt as prompts
from hf_spectral.pipelines.diffusers.generating import GeneratedOutput, generated
from hf_spectral.pipelines.diffusers.lora import NAMES as LORA_NAMES
from hf_spectral.pipelines.diffusers.lora import LoraHost
from hf_spectral.pipelines.diffusers.outputs import OutputType, SpectralDiffusionOutput, outputs_of
from hf_spectral.pipelines.diffusers.reading import Reading, StepEnd, digest
from hf_spectral.pipelines.images import Picture
from hf_spectral.pipelines.inputs import ImageReader
from hf_spectral.pipelines.saved import BASIS_FOLDER, amend, basis_beside, restored, save_pipeline, storable
from hf_spectral.pipelines.settings import CUT_NAMES, CallSettings, checked_batching, configs_of, merged, over_defaults
from hf_spectral.pipelines.settings import SETTINGS as CALL_SETTINGS
from hf_spectral.records import AttentionRecord, Pathway, SkippedLayer
from hf_spectral.restoring import undoing
from hf_spectral.tensor_files import DAMAGE, one_line
from hf_spectral.torch_state import plain_torch

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DiffusionSettings(CallSettings, prompts.PromptEmbeddings, total=False):
    """Arguments of a call; `SpectralDiffusionPipeline.__call__` describes them."""

    timesteps: Sequence[float] | float | None
    num_noise_samples: int
    prompt: str | None
    generator: torch.Generator | list[torch.Generator] | None
    batch_size: int | None
    output_type: OutputType
    callback_on_step_end: Callable[..., Any] | None
    callback_on_step_end_tensor_inputs: Sequence[str] | None
    return_dict: bool


#: Arguments of `at`, which sets their defaults.
SETTINGS = CALL_SETTINGS | prompts.PROMPT_NAMES
SETTINGS |= {"timesteps", "num_noise_samples", "batch_size", "image_column", "output_type"}
_OF_GENERATION = CALL_SETTINGS - {"basis", "walk", "resolution", "timeout"}
_COMPONENTS = ["scheduler", "unet", "transformer", "vae", *prompts.ENCODERS]
_SHIM = "pipeline"  # The module beside the index that names the class to load; it imports the installed package.


def checked_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Check the defaults of calls.

    Args:
        settings: Arguments of `SpectralDiffusionPipeline.at` by name.

    Returns:
        The same.

    Raises:
        SpectralError: If one is unknown or out of range.
    """
    require_known(settings, SETTINGS)
    configs_of(settings)
    require_one_of("output_type", settings.get("output_type", "pil"), get_args(OutputType))
    return checked_batching(settings)


class SpectralDiffusionPipeline(Published, ImageReader, FromSingleFileMixin, DiffusionPipeline):
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
        defaults: Arguments of `at` by name; `save_pretrained` keeps them.
        backbone: `id` and `revision` that the models had before `save_pretrained`, which keeps them.
    """

    _told: Mapping[str, Any] = MappingProxyType({})  # What `at` has set.
    _reading: Reading | None = None  # The part of it that says how pictures are read, the prompt encoded.
    _encoded_with: object = None  # State of LoRA weights then.
    prepares_with_model = True  # The VAE encodes the picture.
    shim_name = f"{_SHIM}.py"
    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->text_encoder_4->vae->unet->transformer"
    _optional_components = _COMPONENTS[1:]
    _callback_tensor_inputs = ["latents", "prompt_embeds"]  # noqa: RUF012 - the host's own form

    def __init__(
        self,
        scheduler: Any,
        unet: torch.nn.Module | None = None,
        transformer: torch.nn.Module | None = None,
        vae: torch.nn.Module | None = None,
        text_encoder: torch.nn.Module | None = None,
        text_encoder_2: torch.nn.Module | None = None,
        text_encoder_3: torch.nn.Module | None = None,
        text_encoder_4: torch.nn.Module | None = None,
        tokenizer: Any = None,
        tokenizer_2: Any = None,
        tokenizer_3: Any = None,
        tokenizer_4: Any = None,
        defaults: Mapping[str, Any] | None = None,
        backbone: Mapping[str, Any] | None = None,
    ) -> None:
        given = _handed_on({name: one for name, one in locals().items() if name in _COMPONENTS})
        super().__init__()
        denoisers = [given[name] for name in ("unet", "transformer") if given[name] is not None]
        if len(denoisers) != 1:
            raise SpectralError(
                "transformer",
                expected="one denoiser, a `unet` or a `transformer`",
                got="none" if not denoisers else "both",
                fix="Load a text-to-image or class-to-image pipeline",
            )
        check_supported(denoisers[0])
        self.register_modules(**given)
        latents_of.check_components(self.family, self.denoiser, self.vae, self.scheduler)
        self._lora = LoraHost()
        self._told = checked_defaults(restored(defaults or {}))
        if backbone is not None:
            self.register_to_config(backbone=dict(backbone))

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
        latents_of.check_repository(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(
        cls, pretrained_model_link_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> SpectralDiffusionPipeline:
        """Load a checkpoint in one file, in the layout that a model was published in, as the host does.

        Args:
            pretrained_model_link_or_path: Path or URL of a `.safetensors` or `.ckpt` file.
            **kwargs: As for the host's method: `config` is the id or folder of a pipeline of the same configuration,
                which is otherwise guessed and asked from the Hub; components that the file lacks are given by name.

        Returns:
            The pipeline.

        Raises:
            SpectralError: If the file or the configuration cannot be read, or a part is missing.
            UnsupportedBackboneError: If the denoiser cannot be read.
        """
        try:
            if kwargs.get("config") is not None:
                latents_of.check_repository(kwargs["config"], kwargs)
            return super().from_single_file(pretrained_model_link_or_path, **kwargs)
        except SpectralError:
            raise
        except (*DAMAGE, RuntimeError, SingleFileComponentError) as error:
            raise SpectralError(
                "pretrained_model_link_or_path",
                expected="a checkpoint in one file, and the configuration of its pipeline",
                got=f"{str(pretrained_model_link_or_path)!r} ({one_line(error)})",
                fix="Give its path, and config=... with the folder or id of such a pipeline",
            ) from error

    @classmethod
    def from_pipe(
        cls, pipeline: DiffusionPipeline, dtype: torch.dtype | None = None, **components: Any
    ) -> SpectralDiffusionPipeline:
        """Build the pipeline around the components of another one, which stays as it is.

        Args:
            pipeline: A pipeline of a supported family, e.g. `StableDiffusionPipeline`.
            dtype: What to convert the shared components to; None, unlike in the host's own method, leaves them alone.
            **components: In the place of the pipeline's own, by name.

        Returns:
            A pipeline that shares the components, with LoRA weights that they have.

        Raises:
            SpectralError: If it is no pipeline, or a part is unknown, or missing that the denoiser needs.
            UnsupportedBackboneError: If the denoiser cannot be read.
        """
        if not isinstance(pipeline, DiffusionPipeline):
            got, fix = f"a {type(pipeline).__name__}", "Give the pipeline that holds it"
            raise SpectralError("pipeline", expected="a pipeline of diffusers", got=got, fix=fix)
        dtype = components.pop("torch_dtype", dtype)  # The host's former name for it.
        require_known(components, _COMPONENTS)
        found = cls(**{name: pipeline.components.get(name) for name in _COMPONENTS} | components)
        latents_of.check_pipeline(found.family, type(pipeline).__name__)
        if name_or_path := pipeline.config.get("_name_or_path"):
            found.register_to_config(_name_or_path=name_or_path)
        return found if dtype is None else found.to(dtype=dtype)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **settings: Any) -> None:
        """Save the components, the defaults of this pipeline, and a card.

        `DiffusionPipeline.from_pretrained(save_directory, trust_remote_code=True)` of diffusers gives the same pipeline
        again. It runs a small module of that folder, which imports this package; `from_pretrained` of this class needs
        no trust.

        Args:
            save_directory: Folder to write to; made if need be.
            *args: As for the host's method.
            **settings: As for the host's method; `push_to_hub=True` pushes the pipeline too, with `repo_id` and other
                arguments of `push_to_hub`.

        Raises:
            SpectralError: If the folder cannot be written, a default is an object that no file can name, or models have
                adapters.
        """
        identity = self.identity()
        kept = {"defaults": storable(self._told), "backbone": {name: identity[name] for name in ("id", "revision")}}
        self.register_to_config(**kept)

        def save(folder: Path, **host: Any) -> None:
            super(SpectralDiffusionPipeline, self).save_pretrained(folder, *args, **host)
            amend(folder / self.config_name, _class_name=[_SHIM, type(self).__name__])

        merge = "fuse_lora(components=[...]), then unload_lora_weights()"
        save_pipeline(self, save_directory, settings, save, self.components, merge)

    def register_to_config(self, **kwargs: Any) -> None:
        """Keep values as the host does, and read the basis of a saved pipeline once its folder is known."""
        super().register_to_config(**kwargs)
        if self._told.get("basis") == BASIS_FOLDER and "_name_or_path" in kwargs:
            revision = extract_commit_hash(str(self.denoiser.config.get("_name_or_path") or ""), None)
            self._told = {**self._told, "basis": basis_beside(kwargs["_name_or_path"], revision)}

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Read an index; where that of a saved pipeline names a module of its folder, take the installed class."""
        index = super()._dict_from_json_file(json_file)
        return index | {"_class_name": cls.__name__} if isinstance(index.get("_class_name"), list) else index

    def identity(self) -> dict[str, Any]:
        """Return `id`, `revision` and `model_type` of the backbone, those of a saved pipeline as they were before."""
        kept = self.config.get("backbone") or {
            "id": public_name(str(self.config.get("_name_or_path") or "")),
            "revision": extract_commit_hash(str(self.denoiser.config.get("_name_or_path") or ""), None),
        }
        return {**kept, "model_type": type(self.denoiser).__name__}

    def __getattr__(self, name: str) -> Any:
        """Return methods for LoRA weights as the denoiser's own pipeline in the host has them."""
        return self._lora.attribute(self, name) if name in LORA_NAMES else super().__getattr__(name)

    @property
    def denoiser(self) -> Any:
        """The `unet` or the `transformer`."""
        return self.unet if self.unet is not None else self.transformer

    @overload
    def __call__(self, image: Picture, **settings: Unpack[DiffusionSettings]) -> SpectralDiffusionOutput: ...

    @overload
    def __call__(
        self, image: list[Any] | tuple[Any, ...], **settings: Unpack[DiffusionSettings]
    ) -> list[SpectralDiffusionOutput]: ...

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
                - `prompt`: None takes that of `at`, or the empty prompt, which suits most images best. In its place
                  `prompt_embeds`, with `pooled_prompt_embeds`, `prompt_attention_mask` and others that the denoiser's
                  own pipeline takes; text encoders are not needed then. There is no guidance, and so nothing negative.
                - `seed`: seeds the start of the solver and, together with the pixels of the image, its noise; None
                  takes that of `at`, or 0.
                - `generator`: source of the noise; a list holds one per image. One for many images is drawn from in
                  turn, so that the noise of an image depends on the batch size.
                - `batch_size` (1): so many images of one size go through the denoiser at once.
                - `output_type` ("pil"): "pil" returns pictures and tensors; "np" and "pt" return label maps and masks
                  (True inside) as arrays or tensors, "np" all numbers as arrays.
                - `callback_on_step_end`: called as `callback(pipe, step, timestep, tensors)` after each timestep of a
                  batch. `callback_on_step_end_tensor_inputs` names its tensors: "latents" (those of the images, without
                  noise) and "prompt_embeds"; those that it returns are read at the timesteps to come.
                - `layer_weights` and `heads`: see `SpectralConfig`. All timesteps and noise samples of a layer share
                  its weight.
                - `basis`: fitted at the same timesteps, prompt and seed.
                - `return_dict` (True): False returns tuples instead of outputs; `as_json=True` gives dicts.

        Returns:
            `SpectralDiffusionOutput`, for a list of pictures a list; with `pathway="both"` a dict of two by pathway.

        Raises:
            SpectralError: If an argument is out of range, or a picture cannot be read.
        """
        prompts.refuse_negative(settings)
        require_known(settings, DiffusionSettings.__annotations__)
        said: dict[str, Any] = {"num_noise_samples": 1, "output_type": "pil", **self._told, **settings}
        names = CALL_SETTINGS - {"seed"}  # It is that of the noise too, and stands beside a basis.
        own = {name: said[name] for name in names & settings.keys()}
        found = over_defaults({name: self._told[name] for name in names & self._told.keys()}, own)
        seed = found["seed"] = self._seed if said.get("seed") is None else said["seed"]
        configs, basis = configs_of(found), found.get("basis")
        if basis is None:
            latents_of.check_pathways(self.family, [config.pathway for config in configs])
        forms = ("pil",) if found.get("as_json") else get_args(OutputType)
        require_one_of("output_type", said["output_type"], forms)
        num_noise_samples = require_positive_int("num_noise_samples", said["num_noise_samples"])
        batch_size = checked_batching({"batch_size": said.get("batch_size")})["batch_size"] or 1
        step_end = (said.get("callback_on_step_end"), said.get("callback_on_step_end_tensor_inputs"))
        on_step_end = StepEnd.of(*step_end, self._callback_tensor_inputs)
        is_many = isinstance(image, (list, tuple))
        images = list(image) if is_many else [image]
        generators = noise_of.given_generators(said.get("generator"), len(images))
        if not images:
            return []
        reading = self._reading_of({**settings, "seed": seed})
        if basis is not None:
            basis.check_backbone(reading.describe(self, basis.backbone.get("resolution")))
        how = {"output_type": said["output_type"], "return_dict": said.get("return_dict", True)}
        how |= {name: found[name] for name in CUT_NAMES & found.keys()}

        def records(group: Any, on_record: Any, layers: Any) -> None:
            steps = self.progress_bar(reading.timesteps * num_noise_samples)
            reading.record(self, group, on_record, layers, steps, on_step_end)

        read = found.get("resolution"), found.get("timeout")
        pictures, outputs = list(zip(images, generators, strict=True)), []
        with undoing(self.maybe_free_model_hooks):
            for start in range(0, len(pictures), batch_size):
                batch = [
                    {**self.preprocess(one, *read), "generator": generator}
                    for one, generator in pictures[start : start + batch_size]
                ]
                results = self.analyzed(batch, found, records)
                outputs += [outputs_of(*one, reading.timesteps, **how) for one in zip(results, batch, strict=True)]
        return outputs if is_many else outputs[0]

    @plain_torch()
    def generate(
        self, prompt: str | None = None, steps: Sequence[int] | None = None, **settings: Any
    ) -> GeneratedOutput:
        """Make a picture from a prompt by the host's own pipeline, and solve one problem per denoising step.

        Example:
            >>> made = pipe.generate("a cat on a sofa", steps=[5, 15, 25], num_inference_steps=28, pathway="what")
            >>> made.image, made.outputs[0].eigenvectors

        Args:
            prompt: What to make; None with `prompt_embeds` and what the host takes beside them.
            steps: Denoising steps, the first being 0; None means all.
            **settings: Those of a call that are of the problem and of segmentation; all others, such as
                `num_inference_steps`, `guidance_scale`, `height`, `width`, `negative_prompt`, `generator` and
                `callback_on_step_end`, are handed to the host. `output_type` ("pil") holds for the picture, and for
                the outputs as in a call; with "latent" no picture is decoded, and label maps are of the token grid.

        Returns:
            The picture, and for each step what a call returns for a picture.

        Raises:
            SpectralError: If the denoiser reads no prompt, a setting is out of range, or a step does not come.
        """
        own = {name: settings[name] for name in settings.keys() & _OF_GENERATION}
        kept = {name: one for name, one in self._told.items() if name in _OF_GENERATION}
        found = over_defaults({**kept, "seed": self._seed}, own)
        latents_of.check_pathways(self.family, [config.pathway for config in configs_of(found)])
        call = {"output_type": self._told.get("output_type", "pil"), **settings}
        call = {name: one for name, one in call.items() if name not in own}
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
        named = {"timesteps": timesteps, "prompt": prompt, "seed": seed}
        said = checked_defaults(settings) | {name: one for name, one in named.items() if one is not None}
        reading = self._reading_of(said)
        reading.require_each_timestep_once()
        found = copy.copy(self)
        # A prompt takes the place of embeddings, and the other way round.
        replaced = prompts.PROMPT_NAMES if prompts.PROMPT_NAMES & said.keys() else frozenset()
        found._told = merged({name: one for name, one in self._told.items() if name not in replaced}, said)
        found._reading, found._encoded_with = reading, self._lora_state
        return found

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings that `at` has set: they hold where a call leaves them out."""
        return {**self._told, "seed": self._seed}

    def _encode(self, image: Image.Image, read_size: tuple[int, int]) -> dict[str, Any]:
        pixels = latents_of.to_pixels(image, read_size, 3 if self.vae is not None else self.denoiser.config.in_channels)
        with latents_of.half_precision_explained():
            latents = latents_of.encode_image(self.vae, pixels.to(self._execution_device), self.denoiser, self.family)
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
        return prompts.encode_prompt(self, prompt)

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
        latents_of.check_pathways(self.family, pathways)
        self._geometry.size_for(1, 10**6, resolution)
        with capture_attention(self.denoiser, layers=layers):
            pass
        self._defaults.require_each_timestep_once()

    def describe_backbone(self, resolution: int | None = None) -> dict[str, Any]:
        """Describe the models and what `at` has set, as a basis stores it: see `Reading.describe`."""
        return self._defaults.describe(self, resolution)

    def _reading_of(self, said: Mapping[str, Any]) -> Reading:
        """Return how a call reads pictures; `at` gives what is None, or else the defaults do."""
        named = {name: self._told.get(name) if said.get(name) is None else said[name] for name in ("timesteps", "seed")}
        steps = noise_of.checked_timesteps(named["timesteps"], self.family, self.scheduler)
        seed = require_seed(0 if named["seed"] is None else named["seed"])
        embeddings, prompt = prompts.given_embeddings(said), said.get("prompt")
        if embeddings:
            return Reading(steps, *prompts.condition_of(self, embeddings), seed=seed)
        if prompt is None and said is not self._told:
            return dataclasses.replace(self._defaults, timesteps=steps, seed=seed)
        prompt = "" if prompt is None else prompt
        return Reading(steps, prompt, self.encode_prompt(prompt), seed)

    @property
    def _defaults(self) -> Reading:
        # Encoded once, not once per batch; and again after LoRA weights of the text encoders have changed.
        if self._reading is None or self._encoded_with != self._lora_state:
            self._reading, self._encoded_with = self._reading_of(self._told), self._lora_state
        return self._reading

    @property
    def _lora_state(self) -> object:
        return self._lora.state(getattr(self, name) for name in prompts.ENCODERS)

    @property
    def _seed(self) -> int:
        return self._told.get("seed", 0)

    @property
    def _encoder(self) -> Any:
        return self.denoiser if self.vae is None else self.vae

    @property
    def _geometry(self) -> InputGeometry:
        return latents_of.geometry_of(self.family, self.denoiser, self.vae)

    @property
    def family(self) -> DenoiserFamily:
        """The family of the denoiser."""
        return family_of(type(self.denoiser))


def _handed_on(given: dict[str, Any]) -> dict[str, Any]:
    """Return components in the place of their entries in the index.

    `DiffusionPipeline.from_pipe(pipe, custom_pipeline=...)` knows of no optional components: it gives the constructor
    the entry (library, class) of each, and nothing that leads to the pipeline itself but the frame of that call.

    Raises:
        SpectralError: If there are entries outside such a call.
    """
    entries = [name for name, one in given.items() if isinstance(one, (tuple, list))]
    if not entries:
        return given
    from_pipe = inspect.unwrap(DiffusionPipeline.from_pipe.__func__).__code__
    calls = (call.frame for call in inspect.stack(0))
    source = next((frame.f_locals.get("pipeline") for frame in calls if frame.f_code is from_pipe), None)
    if source is None:
        raise SpectralError(
            "pipeline",
            expected="models, schedulers and tokenizers",
            got="names of their classes",
            fix="Call SpectralDiffusionPipeline.from_pipe(pipe)",
        )
    return given | {name: getattr(source, name, None) for name in entries}
