"""The transformers pipeline `spectral-pathways`: a picture in, eigenvectors and segments out."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, Pipeline, PreTrainedConfig
from transformers.pipelines import PIPELINE_REGISTRY

from hf_spectral.basis import as_basis
from hf_spectral.basis.files import MODEL_TYPE
from hf_spectral.capture import capture_attention, check_supported, unwrapped, vision_tower
from hf_spectral.checks import require_known
from hf_spectral.config import defaults_hold
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.families.transformers import family_of
from hf_spectral.kept import Published
from hf_spectral.pipelines.backbone import TASK, backbone_of, basis_at, blamed, describe_backbone, warn_once
from hf_spectral.pipelines.hosts import checked_device
from hf_spectral.pipelines.images import Picture
from hf_spectral.pipelines.inputs import ImageReader, iterable_of_images
from hf_spectral.pipelines.outputs import image_output
from hf_spectral.pipelines.saved import SHIM_NAME, amend, described, save_pipeline, saved_defaults
from hf_spectral.pipelines.settings import (
    CUT_NAMES,
    HOST_NAMES,
    HUB_ARGUMENTS,
    PROBLEM_NAMES,
    READ_NAMES,
    SETTINGS,
    CallSettings,
    checked_batching,
    configs_of,
    merged,
    over_defaults,
)
from hf_spectral.pipelines.transformers.offline import DefaultBackbone
from hf_spectral.records import AttentionRecord, Pathway, SkippedLayer
from hf_spectral.tensor_files import DAMAGE, one_line
from hf_spectral.torch_state import plain_torch

if TYPE_CHECKING:
    from typing_extensions import Unpack

    class HostSettings(CallSettings, total=False):
        """Arguments of a call by name, those of the host among them."""

        batch_size: int | None
        num_workers: int | None


# Attribute of the loaded backbone of a basis, with further arguments for the constructor of the pipeline.
_BROUGHT = "_spectral_pathways"


class SpectralPathwaysPipeline(Published, ImageReader, Pipeline):
    """Eigenvectors of all self-attention layers of a frozen vision backbone, one joint problem per image.

    Example:
        >>> import hf_spectral
        >>> from transformers import pipeline
        >>> pipe = pipeline("spectral-pathways", model="facebook/dinov2-small")
        >>> out = pipe("photo.jpg", pathway="what", num_eigenvectors=16, num_segments="auto")
        >>> out["segmentation"]

    The whole picture is read: no center crop, its aspect ratio kept, sides rounded to the patch size. A backbone that
    reads one size only (SAM, Hiera, AIMv2 and others) is shown the picture stretched to it: a warning and the `notes`
    of the result say so. Arguments of a call may be given to the constructor as `defaults`, which hold in
    `hf_spectral.fit`, `transform` and `layer_report` too, as far as these have an argument of that name. With a
    `basis`, the eigenvectors are those of the dataset that it was fitted on, extended to the picture.

    The backbone runs as it was loaded: autocast and other settings of torch in the program around change no result.
    For half precision load it so, with `dtype=torch.bfloat16`.
    """

    shim_name = SHIM_NAME
    _load_processor = False
    _load_image_processor = None  # "If there is one": the constructor refuses a text model with a better message.
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(model, SpectralError):  # Of a basis: see `_Backbones`.
            raise model
        model = unwrapped(getattr(model, "_orig_mod", model))
        check_supported(model)
        # The call comes before the defaults of a saved pipeline, or the basis in whose place the backbone was loaded.
        brought = vars(model).pop(_BROUGHT, {})
        kwargs = checked_batching(merged(brought or saved_defaults(model.config, kwargs), kwargs))
        checked_device(kwargs.get("device"))
        host = {name: kwargs[name] for name in HOST_NAMES & set(kwargs) if kwargs[name] is not None}
        given = {name: kwargs.pop(name) for name in SETTINGS & set(kwargs)}
        kwargs.pop("image_column", None)
        self.defaults: dict[str, Any] = {}
        super().__init__(model, *args, **kwargs)
        if self.image_processor is None:
            self.image_processor: Any = _processor_of(model)
        self._encoder = model
        self._tower = vision_tower(model)
        self._family = family_of(self._tower)
        self._geometry = self._family.geometry(self._tower)
        # A basis is compared with the backbone, which is complete only now.
        if given.get("basis") is not None:
            given["basis"] = as_basis(given["basis"])
        self._sanitize_parameters(**given)
        self.defaults = given | host

    # A string and a list are iterables too: the first signature that fits holds.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: Picture, image_column: str | None = ..., **settings: Unpack[HostSettings]
    ) -> dict[str, Any]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, inputs: list[Any] | tuple[Any, ...], image_column: str | None = ..., **settings: Unpack[HostSettings]
    ) -> list[dict[str, Any]]: ...

    @overload
    def __call__(
        self, inputs: Iterable[Any] | Dataset[Any], image_column: str | None = ..., **settings: Unpack[HostSettings]
    ) -> Iterator[dict[str, Any]]: ...

    @defaults_hold
    @plain_torch()
    def __call__(
        self,
        inputs: Any,
        image_column: str | None = None,
        *,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **settings: Unpack[CallSettings],
    ) -> Any:
        """Analyze one picture, or many.

        Args:
            inputs: A path, URL, PIL image, numpy array or bytes; a list of them; a generator; a `datasets` dataset, or
                a column of one. Pictures of one batch may differ in size.
            image_column: Column of a dataset that holds the pictures; None finds the only image column.
            batch_size: Pictures that are read together; None takes the default of the host.
            num_workers: Processes that read pictures ahead; None takes the default of the host.
            **settings: All of them may be left out:

                - `pathway`: "where", "what" (the default) or "both"
                - `num_eigenvectors` (16), the trivial one among them
                - `num_segments` ("auto"): a number, "auto", or None for no segmentation; `method` of segmentation:
                  "tree", along the picture's edges, "ward" or "kmeans"; `instances` (False): True adds instance masks
                - `return_result` (False): True adds the objects `result` and `hierarchy`
                - `as_json` (False): True gives what `json.dumps` takes: tensors as lists, a mask as the run-length
                  encoding {"size", "counts"} of transformers' mask generation, and the segmentation as a list of these,
                  one for each value
                - `solver`: "eigen", "gradient" or a solver object
                - `affinity` (an object such as `NearestNeighbors(20)`, or its name), `heads`, `layers`, `seed`,
                  `layer_weights`: see `SpectralConfig`; `temperature`, `num_neighbors`, `threshold`: short for
                  parameters of the affinity
                - `resolution`: longer side in pixels at which the picture is read; None takes the backbone's image
                  size; `timeout`: seconds for URLs
                - `basis`: a `SpectralBasis` or its folder, which fixes the pathway and all other settings of the
                  problem; `walk`: see `SpectralBasis.project`

        Returns:
            For one picture a dict, for a list of them a list, for a dataset or generator an iterator. A dict holds
            tensors, PIL images, numbers, strings, and lists and dicts of these, as `dataset.map(pipe,
            input_columns="image")` needs them:

            - `eigenvectors`: float32 tensor (num_eigenvectors, height, width) on the token grid; with a basis they are
              scaled as over its dataset
            - `eigenvalues`: float32 tensor (num_eigenvectors,), of the normalized Laplacian, ascending
            - `segmentation`: PIL image of the picture's size, value = segment, mode "P" with a palette ("I;16" without
              one beyond 256 segments). With a basis whose `clusters` were found, and `num_segments` their number or
              "auto", it is the cluster, which means the same in every picture; any other number cuts this picture alone
            - with clusters, `confidence`: float32 tensor (height, width), one number per pixel of the picture, from 0
              (another cluster is as near) to 1, see `segmentation.label_image`
            - `segments`: list of {"label", "score", "mask"}; `instances`: the same, if asked for
            - `grid`: (height, width) of the token grid; `layers`: names; `residuals`: float32 tensor, with a basis
              those of its dataset; `status`: "converged", or "not_checked" where there is no tolerance (`SolveStatus`)
            - with `return_result=True`, `result`: the `SpectralResult`, which can be saved; its `notes` say if the
              picture was stretched; and `hierarchy`: the `Segmentation`, which with the method "tree" gives every other
              number of segments

            With `pathway="both"` such a dict for each of "where" and "what".

        Raises:
            SpectralError: If an argument is unknown or out of range, or a picture cannot be read.
        """
        host = checked_batching({"batch_size": batch_size, "num_workers": num_workers})
        if isinstance(inputs, (list, tuple)):
            inputs = list(inputs)
            if not inputs:
                return []
        return super().__call__(iterable_of_images(inputs, image_column), **host, **settings)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **settings: Any) -> None:
        """Save the backbone, its image processor, the defaults of this pipeline, and a card.

        `pipeline(model=save_directory, trust_remote_code=True)` of transformers gives the same pipeline again. It runs
        a small module of that folder, which imports this package; `hf_spectral.pipeline` runs none of it.

        Args:
            save_directory: Folder to write to; made if need be.
            **settings: As for the model's `save_pretrained`; `push_to_hub=True` pushes the pipeline too, with `repo_id`
                and other arguments of `push_to_hub`.

        Raises:
            SpectralError: If the folder cannot be written, a default is an object that no file can name, or the
                backbone has adapters.
        """
        entry = described(self.defaults, self.describe_backbone())

        def save(folder: Path, **host: Any) -> None:
            self.model.save_pretrained(folder, **host)
            self.image_processor.save_pretrained(folder)
            amend(folder / "config.json", custom_pipelines=entry)

        merge = "model = model.merge_and_unload()"
        save_pipeline(self, save_directory, settings, save, {"model": self.model}, merge)

    def get_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's iterator over many pictures; it draws no number from the program's random generator."""
        outputs = super().get_iterator(*args, **kwargs)
        outputs.loader.loader.generator = torch.Generator()
        return _Stream(outputs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        require_known(kwargs, SETTINGS | HOST_NAMES)
        settings = over_defaults(self.defaults, kwargs)
        if kwargs.get("basis") is not None:
            # The caller chooses the resolution at which images are read, here as in the fit.
            backbone = self.describe_backbone(settings["basis"].backbone.get("resolution"))
            settings["basis"].check_backbone(backbone)
        configs_of(settings)
        read, forward, segment = (
            {name: settings[name] for name in names & set(settings)} for names in (READ_NAMES, PROBLEM_NAMES, CUT_NAMES)
        )
        return read, forward, segment

    def describe_backbone(self, resolution: int | None = None) -> dict[str, Any]:
        """Describe the backbone as a basis stores it: see `backbone.describe_backbone`."""
        return describe_backbone(self.model, self.image_processor, resolution)

    def check_reading(
        self, resolution: int | None = None, layers: Iterable[int] | None = None, pathways: Sequence[Pathway] = ()
    ) -> None:
        """Check settings before any picture is read.

        Args:
            resolution: Longer side in pixels, or None.
            layers: Indices of layers, or None.
            pathways: Not looked at: which layers serve them is known once a picture has been read.

        Raises:
            SpectralError: If the backbone reads no such size or has no such layer.
        """
        # A picture of other proportions may have fewer tokens, unless narrow ones are enlarged.
        self._geometry.size_for(1, 10**6 if self._geometry.shortest is None else 1, resolution)
        with capture_attention(self.model, layers=layers):
            pass

    @plain_torch()
    def records(
        self,
        group: Sequence[Mapping[str, Any]],
        on_record: Callable[[AttentionRecord], object],
        layers: Iterable[int] | None = None,
    ) -> list[SkippedLayer]:
        """Run the backbone once and pass on each attention layer as it arrives: memory holds one.

        Args:
            group: Pictures of one size, as `preprocess` returned them.
            on_record: Receives the records of all pictures of the group, in call order.
            layers: Indices of the layers to record; None means all.

        Returns:
            Layers that attend but gave no record, with reasons.

        Raises:
            SpectralError: If a layer holds NaN, or there is no such layer.
        """
        warn_once(self, group)
        tensors = {name: torch.cat([prepared["inputs"][name] for prepared in group]) for name in group[0]["inputs"]}
        with blamed(self.model, group[0]["read_size"], lambda *black: self._run(self.prepare(*black)["inputs"])):
            return self._run(tensors, on_record, layers)

    @plain_torch()
    def _forward(self, model_inputs: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """Run the backbone once per group of equal sizes; solve one problem per image and pathway, or project."""
        # A batch arrives as lists, a single picture does not.
        batch: list[Mapping[str, Any]] = [model_inputs]
        if isinstance(model_inputs["inputs"], list):
            batch = [dict(zip(model_inputs, one, strict=True)) for one in zip(*model_inputs.values(), strict=True)]
        results = self.analyzed(batch, settings, self.records)
        return {"results": results, "picture": model_inputs["picture"], "size": model_inputs["size"]}

    @plain_torch()
    def postprocess(self, model_outputs: dict[str, Any], **cut: Any) -> dict[str, Any]:
        """Segment the images; see `image_output`."""
        results = model_outputs["results"]
        results = results[0] if isinstance(results[0], list) else results
        seen = model_outputs["picture"], model_outputs["size"]
        outputs = {result.config.pathway: image_output(result, *seen, **cut) for result in results}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def _encode(self, image: Image.Image, read_size: tuple[int, int]) -> dict[str, Any]:
        tensors = self._family.to_inputs(self._tower, self.image_processor, image, read_size)
        dtype = self.model.dtype
        return {"inputs": {name: one.to(dtype) if one.is_floating_point() else one for name, one in tensors.items()}}

    @staticmethod
    def _shape(prepared: Mapping[str, Any]) -> Any:
        return tuple((name, tensor.shape) for name, tensor in prepared["inputs"].items())

    def _run(
        self,
        tensors: dict[str, Tensor],
        on_record: Callable[[AttentionRecord], object] = lambda record: None,
        layers: Iterable[int] | None = None,
    ) -> list[SkippedLayer]:
        with self.device_placement(), torch.no_grad(), capture_attention(self.model, on_record, layers) as capture:
            placed = self._ensure_tensor_on_device(tensors, self.device)
            self._tower(**placed, **self._geometry.forward_arguments)
        return capture.skipped


def _processor_of(model: Any) -> Any:
    """Return the image processor of the place that a model was loaded from."""
    got, cause = "none, and the object names no place it was loaded from", None
    if model.config.name_or_path:
        try:
            return AutoImageProcessor.from_pretrained(model.config.name_or_path)
        except (*DAMAGE, RuntimeError, ImportError) as error:  # Errors that the host raises.
            got, cause = one_line(error), error
    raise SpectralError(
        "image_processor",
        expected="the image processor that belongs to the backbone",
        got=got,
        fix="Pass image_processor=AutoImageProcessor.from_pretrained(...)",
    ) from cause


class _BasisConfig(PreTrainedConfig):
    """The configuration that the host makes of a basis, an adapter; `_Backbones` loads the backbone that it names."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return an empty configuration: `SpectralBasis.from_pretrained` reads the file."""
        return cls()


class _Backbones(AutoModel):
    """Loads backbones for the host, without weights if the configuration shows that the constructor rejects them."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the backbone, or an empty one if it cannot be read: the host would wrap an error raised here.

        In place of a basis, the backbone that it names is returned, with what the constructor is to take beside it.
        """
        hub = {name: kwargs[name] for name in (*HUB_ARGUMENTS, "subfolder") if name in kwargs}
        config = None
        with contextlib.suppress(OSError):  # An adapter has no configuration; the host finds the one of its base.
            config = AutoConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        if isinstance(config, _BasisConfig):
            try:
                basis = basis_at(pretrained_model_name_or_path, kwargs)
                name, revision = backbone_of(basis, "transformers")
            except SpectralError as error:
                return error  # The constructor raises it.
            brought: dict[str, Any] = {"basis": basis}
            model = cls.from_pretrained(name, *args, **kwargs | {"revision": revision})
            with contextlib.suppress(OSError):  # There may be none; the call may give one.
                brought["image_processor"] = AutoImageProcessor.from_pretrained(name, **hub | {"revision": revision})
            setattr(model, _BROUGHT, brought)
            return model
        # Code of the repository's own is looked at once it is loaded.
        if type(config) in MODEL_MAPPING and not kwargs.get("trust_remote_code"):
            with torch.device("meta"):
                skeleton = AutoModel.from_config(config)
            try:
                check_supported(skeleton)
            except UnsupportedBackboneError:
                return skeleton
        return AutoModel.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


@dataclasses.dataclass
class _Stream:
    """Iterator over the outputs of many pictures, which starts the host's own inside `plain_torch`."""

    outputs: Any
    running: Any = None  # The host's iterator, once it has begun.

    def __len__(self) -> int:
        return len(self.outputs)

    def __iter__(self) -> _Stream:
        with plain_torch():  # The host's loader makes a tensor here.
            self.running = iter(self.outputs)
        return self

    def __next__(self) -> Any:
        if self.running is None:
            iter(self)
        return next(self.running)


def register() -> None:
    """Make `pipeline("spectral-pathways")` known to transformers."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        AutoConfig.register(MODEL_TYPE, _BasisConfig)
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=SpectralPathwaysPipeline,
            pt_model=_Backbones,
            default=DefaultBackbone(model=()),
            type="image",
        )
