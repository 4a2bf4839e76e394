"""The dataset-level model: eigenvectors over all tokens of all images, kept as a map that serves any image."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hf_spectral.basis import files
from hf_spectral.basis.factors import BasisLayer, factor, layer_columns, match, normalized_factor, reduced
from hf_spectral.basis.gram import coupling
from hf_spectral.basis.walk import diffuse, require_walk, walk_config
from hf_spectral.checks import require_same
from hf_spectral.clusters import Clusters
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.fingerprint import WEIGHTS, require_same_weights
from hf_spectral.grid import TokenGrid
from hf_spectral.kept import Kept, Published, shown_eigenvalues
from hf_spectral.problem import ProblemBuilder
from hf_spectral.records import AttentionRecord, Pathway, unit_tokens
from hf_spectral.result import SolveStatus, SpectralResult
from hf_spectral.torch_state import plain_torch, with_float64

LayerMap = tuple[Float[Tensor, "_width _kept"] | None, Float[Tensor, "_rank eigenvectors"], Float[Tensor, " _rank"]]

#: Strength of the walk inside an image where none is asked for, by pathway. It brings `what` to the borders of objects.
#: `where` is read as a map of the layout, which a walk would blur: on 100 photographs of COCO, position explains
#: 50 % of its eigenvectors 1 to 12 without a walk and 37 % with 0.8 (`tests/benchmarks/dataset.py --parts scores`).
#: Its clusters agree with classes of objects better with 0.8, NMI 0.67 against 0.58 (128 eigenvectors, MSRC).
DEFAULT_WALK: dict[Pathway, float] = {"what": 0.9, "where": 0.0}


@dataclasses.dataclass(frozen=True, repr=False)
class SpectralBasis(Kept, Published):
    """Eigenvectors of the joint problem of a whole dataset.

    For token p of any image, with the sums of the dataset fixed, x_p = sum_l (P_l^T D_l^-1/2 F_l)_p M_l (B^-1 before
    it where layers differ in resolution): on an image of the dataset these are the rows of the exact eigenvectors, on
    another image their Nystrom extension. Made by `BasisAccumulator.solve`.

    Args:
        eigenvalues: Of the normalized Laplacian, ascending, the trivial one at index 0, float32.
        residuals: ||A x - (1 - lambda) B x|| of the unit eigenvectors over the dataset.
        projections: M_l of each layer.
        sums: J_l times the sum of F_l over the dataset, float64: gives the degree of any token.
        num_tokens: Tokens of each layer in those sums.
        layers: The layers.
        weights: Weight of each layer, together 1.
        num_images: Images fitted on.
        num_nodes: Nodes of their common grids.
        config: Pathway, layers asked for, number of eigenvectors, and the seed of the bounded width.
        max_width: Bound on the sum of the factors' columns, or None.
        backbone: Description of the backbone: names with JSON values.
        versions: Of the packages that made it.
        skipped: Images of the dataset that were left out, each as its name and the reason.
        clusters: What `dataset.transform(num_segments=...)` found last, with which the pipeline labels any image; None
            before.
    """

    eigenvalues: Float[Tensor, " eigenvectors"]
    residuals: Float[Tensor, " eigenvectors"]
    projections: tuple[Float[Tensor, "_rank eigenvectors"], ...]
    sums: tuple[Float[Tensor, " _rank"], ...]
    num_tokens: Int[Tensor, " layers"]
    layers: tuple[BasisLayer, ...]
    weights: tuple[float, ...]
    num_images: int
    num_nodes: int
    config: SpectralConfig
    max_width: int | None = None
    backbone: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    clusters: Clusters | None = None

    _files = (files.CONFIG_NAME, files.TENSORS_NAME)
    _argument = "basis"
    _expected = (
        f"a folder that SpectralBasis.save_pretrained wrote ({files.CONFIG_NAME} and {files.TENSORS_NAME}), "
        "or a repository of the Hub that holds these"
    )
    _fix = "Fetch it again, or fit the basis anew"

    def _facts(self) -> dict[str, str]:
        backbone = self.backbone.get("id") or self.backbone.get("model_type")
        return {
            "pathway": self.config.pathway,
            "eigenvectors": f"{len(self.eigenvalues)} of {len(self.layers)} layers",
            "eigenvalues": shown_eigenvalues(self.eigenvalues),
            "fitted on": f"{self.num_images:,} images, {self.num_nodes:,} tokens, {len(self.skipped)} skipped",
            **({"clusters": str(self.clusters.num_segments)} if self.clusters else {}),
            **({"backbone": str(backbone)} if backbone else {}),
        }

    @functools.cached_property
    def _maps(self) -> dict[tuple[int, torch.device], LayerMap]:
        return {}

    def layer_map(self, position: int, device: torch.device) -> LayerMap:
        """Return what projects the tokens of one layer, copied to the device once.

        Args:
            position: Position of a layer whose width a record has confirmed, which a basis of unknown origin may
                misstate.
            device: Where the tokens are.

        Returns:
            The orthonormal columns that bound the width, made again from the seed, or None for a layer that is kept
            whole; the projection; the sums.
        """
        key = position, device
        if key not in self._maps:
            (columns,) = layer_columns(self.layers[position : position + 1], self.config.seed)
            columns = None if columns is None else columns.to(device)
            self._maps[key] = columns, self.projections[position].to(device), self.sums[position].to(device)
        return self._maps[key]

    def keep_clusters(self, clusters: Clusters) -> None:
        """Set `clusters`, the one thing that a basis learns after its fit.

        Args:
            clusters: Found in this basis's eigenvectors.
        """
        object.__setattr__(self, "clusters", clusters)

    def project(self, records: Iterable[AttentionRecord], walk: float | int | None = None) -> SpectralResult:
        """Return the dataset's eigenvectors on one image, seen or not.

        Args:
            records: Its layers; those that the basis does not use are passed over.
            walk: Strength of the walk inside the image (`walk.diffuse`), from 0 (off) to 0.999; None takes the one
                that `clusters` were found with, or else `DEFAULT_WALK`: 0.9 for `what`, 0 for `where`.

        Returns:
            Maps on the image's common grid, scaled as over the dataset: together over all its images, without
            walk, they are unit vectors. The residuals are those of the dataset and say nothing about the extension to
            one image, so that the status is `NOT_CHECKED`.

        Raises:
            SpectralError: If a layer is missing or of another width, or the records hold several images.
        """
        projector = self.projector(walk)
        for record in records:
            projector.add(record)
        results = projector.results()
        if len(results) != 1:
            raise SpectralError(
                "records", expected="one image", got=f"{len(results)} images", fix="Use basis.projector() for a batch"
            )
        return results[0]

    def projector(self, walk: float | int | None = None) -> Projector:
        """Return a projector for a batch of images whose layers arrive one by one.

        Args:
            walk: As for `project`.

        Returns:
            A fresh projector: `add` each record, then `results`.
        """
        default = DEFAULT_WALK[self.config.pathway] if self.clusters is None else self.clusters.walk
        return Projector(self, require_walk(default if walk is None else walk))

    def check_backbone(self, description: dict[str, Any]) -> None:
        """Refuse a backbone that is not the one the basis was fitted on.

        Args:
            description: Names with JSON values. Every name that the basis has stored needs the same value here, except
                a `revision` that is unknown on either side.

        Raises:
            SpectralError: If any differs; all that differ are named. Attention weights may differ as rounding makes
                them (`require_same_weights`).
        """
        names = set(self.backbone) - {WEIGHTS}
        if None in (self.backbone.get("revision"), description.get("revision")):
            names -= {"revision"}
        require_same(
            "basis",
            {name: self.backbone[name] for name in names},
            {name: description.get(name) for name in names},
            "the backbone it was fitted on, ",
            "Load that backbone, or fit a basis on this one",
        )
        layers = ((layer.name, layer.index) for layer in self.layers)
        require_same_weights("basis", self.backbone.get(WEIGHTS), description.get(WEIGHTS), layers)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write `basis.safetensors` and `config.json`; each appears whole or not at all.

        Args:
            folder: Where to write; made if need be.

        Returns:
            The folder.
        """
        tensors = {"eigenvalues": self.eigenvalues, "residuals": self.residuals, "num_tokens": self.num_tokens}
        for position, (projection, total) in enumerate(zip(self.projections, self.sums, strict=True)):
            tensors |= {f"projection.{position}": projection, f"sum.{position}": total}
        plain = ("weights", "num_images", "num_nodes", "max_width", "backbone", "versions", "skipped")
        described = {name: getattr(self, name) for name in plain}
        described |= {"layers": [dataclasses.asdict(layer) for layer in self.layers], "config": self.config.to_dict()}
        if self.clusters is not None:
            described["clusters"] = files.describe_clusters(self.clusters)
            tensors |= {f"clusters.{name}": getattr(self.clusters, name) for name in files.CLUSTER_TENSORS}
        return files.write(Path(folder), described, tensors)

    @classmethod
    def _read(cls, path: Path) -> SpectralBasis:
        described, tensors = files.read(path)
        count = len(described["layers"])
        if kept := described["clusters"]:
            parts = {name: tensors[f"clusters.{name}"] for name in files.CLUSTER_TENSORS}
            described["clusters"] = Clusters(**parts, num_segments=kept["num_segments"], walk=kept["walk"])
        return cls(
            eigenvalues=tensors["eigenvalues"],
            residuals=tensors["residuals"],
            projections=tuple(tensors[f"projection.{position}"] for position in range(count)),
            sums=tuple(tensors[f"sum.{position}"] for position in range(count)),
            num_tokens=tensors["num_tokens"],
            **described,
        )


def as_basis(basis: Any) -> SpectralBasis:
    """Return the basis that an argument of that name stands for.

    Args:
        basis: A basis, or where `SpectralBasis.from_pretrained` finds it.

    Returns:
        The basis.

    Raises:
        SpectralError: If it is neither.
    """
    return basis if isinstance(basis, SpectralBasis) else SpectralBasis.from_pretrained(basis)


class Projector:
    """Projects a batch of images layer by layer: memory holds one layer, and the eigenvectors of the batch.

    Args:
        basis: The basis.
        walk: Strength of the walk inside each image, from 0 to 0.999.
    """

    def __init__(self, basis: SpectralBasis, walk: float) -> None:
        self._basis = basis
        self._walk = walk
        self._shapes: dict[int, tuple[int, int]] = {}
        self._rows: list[dict[tuple[int, int], Tensor]] = []
        self._graphs: list[ProblemBuilder] = []
        self._device = torch.device("cpu")

    @plain_torch()
    def add(self, record: AttentionRecord) -> None:
        """Add one layer of all images of the batch.

        Args:
            record: The layer; passed over if the basis does not use it.

        Raises:
            SpectralError: If it is of another width or batch than expected, or came before.
        """
        basis, pathway = self._basis, self._basis.config.pathway
        position = match(basis.layers, record, pathway)
        if position is None:
            return
        if not self._rows:
            self._rows = [{} for _ in range(record.num_images)]
            self._graphs = [ProblemBuilder(walk_config(pathway)) for _ in range(record.num_images)]
        if position in self._shapes or record.num_images != len(self._rows):
            raise SpectralError(
                "records",
                expected=f"each layer once, with {len(self._rows)} images",
                got=f"{record.name} again or with {record.num_images} images",
                fix="Take a new projector for every batch",
            )
        shape = self._shapes[position] = record.grid.shape
        self._device = with_float64(record.value.device)
        columns, projection, total = basis.layer_map(position, self._device)
        tokens = reduced(tuple(part.to(self._device) for part in unit_tokens(record, pathway)), columns)
        for image, rows in enumerate(self._rows):
            normalized = normalized_factor(factor(tokens, image), total, int(basis.num_tokens[position]))
            product = normalized @ projection
            rows[shape] = rows[shape] + product if shape in rows else product
            if self._walk:
                self._graphs[image].add(record.image(image), basis.weights[position])

    @plain_torch()
    def results(self) -> list[SpectralResult]:
        """Return the eigenvectors of each image; the projector is spent afterwards.

        Returns:
            One result per image, on the CPU.

        Raises:
            SpectralError: If a layer of the basis is missing.
        """
        basis = self._basis
        missing = [layer.name for position, layer in enumerate(basis.layers) if position not in self._shapes]
        if missing:
            raise SpectralError(
                "records",
                expected=f"all {len(basis.layers)} layers of the basis",
                got=f"none of {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
                fix="Capture all layers of the backbone that the basis was fitted on",
            )
        shapes = [self._shapes[position] for position in range(len(basis.layers))]
        joint = coupling(shapes, basis.weights, self._device)
        return [self._result(image, joint) for image in range(len(self._rows))]

    def _result(self, image: int, joint: Any) -> SpectralResult:
        basis, rows = self._basis, self._rows[image]
        if joint is None:
            (shape, vectors), *_ = rows.items()
            grid = TokenGrid(*shape)
        else:
            grid = joint.common
            vectors = sum(joint.spread[shape] @ part for shape, part in rows.items())
        if self._walk:
            graph = self._graphs[image].build()
            vectors = diffuse(graph, vectors.to(graph.affinity.device), self._walk)
        return SpectralResult(
            eigenvalues=basis.eigenvalues,
            eigenvectors=grid.to_map(vectors.float()).cpu(),
            residuals=basis.residuals,
            status=SolveStatus.NOT_CHECKED,
            steps=0,
            grid=grid,
            layers=tuple(layer.name for layer in basis.layers),
            layer_weights=basis.weights,
            config=basis.config,
            solver={"name": "SpectralBasis", "walk": self._walk, "num_images": basis.num_images},
        )
