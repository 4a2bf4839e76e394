"""The transformers pipeline `spectral-pathways`: a picture in, eigenvectors and segments out."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from hf_spectral.capture import capture_attention, check_supported, vision_tower
from hf_spectral.config import PATHWAYS, SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.graph import ProblemBuilder
from hf_spectral.pipelines.images import input_geometry, read_image
from hf_spectral.pipelines.offline import DEFAULT_REVISION, default_backbone
from hf_spectral.records import AttentionRecord
from hf_spectral.result import SpectralResult
from hf_spectral.segmentation import Instance, Segmentation, instances, segment
from hf_spectral.solvers import EigenSolver, GradientSolver, Solver, solve

TASK = "spectral-pathways"
SOLVERS: dict[str, type[Solver]] = {"eigen": EigenSolver, "gradient": GradientSolver}

_SPECTRAL_NAMES = frozenset(field.name for field in dataclasses.fields(SpectralConfig))
_SEGMENT_NAMES = frozenset({"num_segments", "method", "instances"})
_READ_NAMES = frozenset({"resolution", "timeout"})


class SpectralPathwaysPipeline(Pipeline):
    """Eigenvectors of all self-attention layers of a frozen vision backbone, one joint problem an image.

    Example:
        >>> import hf_spectral
        >>> from transformers import pipeline
        >>> pipe = pipeline("spectral-pathways", model="facebook/dinov2-small")
        >>> out = pipe("photo.jpg", pathway="what", num_eigenvectors=16, num_segments="auto")
        >>> out["segmentation"]

    The whole picture is read: no center crop, its aspect ratio kept, sides rounded to the patch size. Arguments of a
    call may be given to the constructor as defaults.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        check_supported(model)
        super().__init__(model, *args, **kwargs)
        if self.image_processor is None:
            raise SpectralError(
                "image_processor",
                expected="the processor that belongs to the backbone",
                got=None,
                fix="Pass image_processor=AutoImageProcessor.from_pretrained(...)",
            )
        self._geometry = input_geometry(model)

    def __call__(self, inputs: Any, image_column: str | None = None, **kwargs: Any) -> Any:
        """Analyze one picture, or many.

        Args:
            inputs: A path, URL, PIL image, numpy array or bytes; a list of them; a generator; a `datasets` dataset, or
                a column of one. Pictures of one batch may differ in size.
            image_column: Column of a dataset that holds the pictures; None finds the only image column.
            **kwargs: `pathway` ("where", "what" or "both"), `num_eigenvectors` (16), `num_segments` (a number, "auto",
                or None for no segmentation), `method` of segmentation ("ward" or "kmeans"), `instances` (False; True
                adds instance masks), `solver` ("eigen", "gradient" or a solver object), `affinity`, `heads`, `layers`,
                `temperature`, `num_neighbors`, `threshold`, `seed` (see `SpectralConfig`), `resolution` (longer side in
                pixels at which the picture is read; None takes the backbone's image size), `timeout` (seconds for
                URLs), `batch_size`, `num_workers`.

        Returns:
            For one picture a dict, for a list of them a list, for a dataset or generator an iterator:

            - `eigenvectors`: float32 tensor (num_eigenvectors, height, width) on the token grid
            - `eigenvalues`: float32 tensor (num_eigenvectors,), of the normalized Laplacian, ascending
            - `segmentation`: PIL image of the picture's size, mode "L" ("I;16" beyond 256 segments), value = segment
            - `segments`: list of {"label", "score", "mask"}; `instances`: the same, if asked for
            - `grid`: (height, width) of the token grid; `layers`: names; `residuals`: float32 tensor
            - `result`: the `SpectralResult`, which can be saved

            With `pathway="both"` such a dict for each of "where" and "what".

        Raises:
            SpectralError: If an argument is unknown or out of range, or a picture cannot be read.
        """
        if isinstance(inputs, (list, tuple)):
            inputs = list(inputs)
            if not inputs:
                return []
        return super().__call__(_iterable_of_images(inputs, image_column), **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = _SPECTRAL_NAMES | _SEGMENT_NAMES | _READ_NAMES | {"solver"}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise SpectralError(
                unknown[0],
                expected=f"one of the arguments {', '.join(sorted(known))}",
                got=unknown,
                fix="Check its name",
            )
        forward = {name: value for name, value in kwargs.items() if name in _SPECTRAL_NAMES}
        if "solver" in kwargs:
            forward["solver"] = _as_solver(kwargs["solver"])
        _configs(forward)  # A wrong setting is refused here, before any picture is read.
        read = {name: kwargs[name] for name in _READ_NAMES & set(kwargs)}
        return read, forward, {name: kwargs[name] for name in _SEGMENT_NAMES & set(kwargs)}

    def preprocess(self, image: Any, resolution: int | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Read one picture and bring it to the size and the numbers that the backbone takes."""
        image = read_image(image, timeout)
        size = self._geometry.size_for(image.height, image.width, resolution)
        return {"inputs": self._to_tensors(image, size), "size": (image.height, image.width)}

    def _forward(self, model_inputs: dict[str, Any], solver: Solver | None = None, **settings: Any) -> dict[str, Any]:
        """Run the backbone once a group of equal sizes, and solve one problem an image and pathway."""
        # A batch arrives as lists, a single picture does not.
        is_batch = isinstance(model_inputs["inputs"], list)
        batch = model_inputs["inputs"] if is_batch else [model_inputs["inputs"]]
        configs = _configs(settings)
        groups = defaultdict(list)
        for position, tensors in enumerate(batch):
            groups[tuple((name, tensor.shape) for name, tensor in tensors.items())].append(position)
        results: dict[int, list[SpectralResult]] = {}
        for positions in groups.values():
            tensors = {name: torch.cat([batch[position][name] for position in positions]) for name in batch[0]}
            results.update(zip(positions, self._analyze(tensors, len(positions), configs, solver), strict=True))
        return {"results": [results[position] for position in range(len(batch))], "size": model_inputs["size"]}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        num_segments: int | Literal["auto"] | None = "auto",
        method: Literal["ward", "kmeans"] = "ward",
        instances: bool = False,
    ) -> dict[str, Any]:
        """Segment, and name what was found."""
        results = model_outputs["results"]
        results = results[0] if isinstance(results[0], list) else results
        outputs = {
            result.config.pathway: _output(result, model_outputs["size"], num_segments, method, instances)
            for result in results
        }
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def _to_tensors(self, image: Image.Image, size: tuple[int, int]) -> dict[str, Tensor]:
        processor: Any = self.image_processor
        if hasattr(processor, "max_num_patches"):  # NaFlex cuts patches itself, from a grid that fits a number of them.
            patch = self._geometry.multiple
            count = (size[0] // patch[0]) * (size[1] // patch[1])
            tensors = processor(image, max_num_patches=count, return_tensors="pt")
        else:
            resample = getattr(processor, "resample", None)
            resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC if resample is None else int(resample))
            tensors = processor(resized, do_resize=False, do_center_crop=False, do_pad=False, return_tensors="pt")
            tensors = {"pixel_values": tensors["pixel_values"]}
        return {
            name: tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }

    def _analyze(
        self, tensors: Mapping[str, Tensor], num_images: int, configs: list[SpectralConfig], solver: Solver | None
    ) -> list[list[SpectralResult]]:
        """Solve every image for every pathway, from one forward pass whose layers are consumed as they arrive."""
        builders = [[ProblemBuilder(config) for config in configs] for _ in range(num_images)]

        def consume(record: AttentionRecord) -> None:
            for position, image_builders in enumerate(builders):
                image = record.image(position)
                for builder in image_builders:
                    builder.add(image)

        with capture_attention(self.model, on_record=consume, layers=configs[0].layers):
            vision_tower(self.model)(**tensors, **self._geometry.forward_arguments)
        return [[solve(builder.build(), solver) for builder in image_builders] for image_builders in builders]


def register() -> None:
    """Make `pipeline("spectral-pathways")` known to transformers."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=SpectralPathwaysPipeline,
            pt_model=AutoModel,
            default=_DefaultBackbone(model=()),
            type="image",
        )


class _DefaultBackbone(dict[str, Any]):
    """Answers "which model by default?" when it is asked, since only then it is worth looking for the Hub."""

    def __getitem__(self, key: str) -> Any:
        return (default_backbone(), DEFAULT_REVISION) if key == "model" else super().__getitem__(key)


def _configs(settings: Mapping[str, Any]) -> list[SpectralConfig]:
    settings = {name: value for name, value in settings.items() if name != "solver"}
    if settings.get("pathway") != "both":
        return [SpectralConfig(**settings)]
    if settings.get("affinity") == "attention":
        raise SpectralError(
            "affinity", expected="one that serves both pathways", got="'attention'", fix="Leave it out for the defaults"
        )
    return [SpectralConfig(**{**settings, "pathway": pathway}) for pathway in PATHWAYS]


def _as_solver(solver: Any) -> Solver:
    if isinstance(solver, Solver):
        return solver
    if solver in SOLVERS:
        return SOLVERS[solver]()
    raise SpectralError(
        "solver",
        expected=f"one of {', '.join(map(repr, SOLVERS))} or a solver object",
        got=repr(solver),
        fix="Choose one",
    )


def _iterable_of_images(inputs: Any, image_column: str | None) -> Any:
    """Turn what `datasets` gives into what transformers iterates over, without importing `datasets`."""
    if not type(inputs).__module__.startswith("datasets."):
        return inputs
    if not hasattr(inputs, "column_names"):  # A column.
        return _each(inputs)
    column = image_column or _only_image_column(inputs.features or {}, inputs.column_names or [])
    return KeyDataset(inputs, column) if hasattr(inputs, "__len__") else (row[column] for row in inputs)


def _only_image_column(features: Mapping[str, Any], names: Iterable[str]) -> str:
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) != 1:
        raise SpectralError(
            "image_column",
            expected="the name of a column of pictures",
            got=f"None, among the columns {', '.join(names) or '(unknown)'}",
            fix="Pass image_column=...",
        )
    return images[0]


def _each(column: Iterable[Any]) -> Iterator[Any]:
    yield from column


def _output(
    result: SpectralResult,
    size: tuple[int, int],
    num_segments: int | Literal["auto"] | None,
    method: Literal["ward", "kmeans"],
    with_instances: bool,
) -> dict[str, Any]:
    output: dict[str, Any] = {
        "eigenvectors": result.eigenvectors,
        "eigenvalues": result.eigenvalues,
        "residuals": result.residuals,
        "grid": (result.grid.height, result.grid.width),
        "layers": result.layers,
        "result": result,
    }
    pair, seed = (result.eigenvectors, result.eigenvalues), result.config.seed
    if num_segments is not None:
        segmentation = segment(*pair, num_segments, method=method, size=size, seed=seed)
        output["segmentation"] = _label_image(segmentation.labels)
        output["segments"] = _segments(segmentation)
    if with_instances:
        output["instances"] = [_instance(found) for found in instances(*pair, size=size, seed=seed)]
    return output


def _label_image(labels: Tensor) -> Image.Image:
    array = labels.cpu().numpy()
    return Image.fromarray(array.astype("uint8" if array.max() < 256 else "uint16"))


def _segments(segmentation: Segmentation) -> list[dict[str, Any]]:
    return [
        {"label": f"segment {index}", "score": float(score), "mask": _mask_image(segmentation.labels == index)}
        for index, score in enumerate(segmentation.scores)
    ]


def _instance(instance: Instance) -> dict[str, Any]:
    return {"label": "instance", "score": instance.score, "mask": _mask_image(instance.mask)}


def _mask_image(mask: Tensor) -> Image.Image:
    return Image.fromarray(mask.cpu().numpy().astype("uint8") * 255)
