"""The optimization of the paper over a whole dataset, the reference that the streamed basis is compared with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_spectral.affinities import NearestNeighbors
from hf_spectral.checks import keep_ints, keep_numbers
from hf_spectral.config import SpectralConfig
from hf_spectral.errors import SpectralError
from hf_spectral.grid import TokenGrid, finest
from hf_spectral.krylov import fix_signs
from hf_spectral.layer_choice import taking_part
from hf_spectral.records import AttentionRecord
from hf_spectral.result import SolveStatus, SpectralResult, laplacian_eigenvalues
from hf_spectral.solvers.dataset_graph import GridGraph, NeighborSettings, batch_graphs
from hf_spectral.solvers.gradient import objective
from hf_spectral.torch_state import plain_torch, with_float64

Images = Sequence[Sequence[AttentionRecord]]

# Directions whose singular value falls below this share of the largest are rounding noise in float32.
_DEPENDENT = 1e-6


@dataclasses.dataclass(frozen=True)
class DatasetGradientSolver:
    """Gradient descent on one free table per image, over nearest-neighbor graphs of minibatches of images.

    Minimizes, with X the softmax over channels of the tables of a batch, X_l its pooling to the grid of layer l under
    columns of unit norm over the batch, S_l the normalized graph of the batch (`num_neighbors` edges per token inside
    its image and `num_inter` to others of the batch) and weight_l = (side of the finest grid) / (side of layer l),

        mean_l weight_l ( mean |diag(X_l^T S_l X_l) - 1| + mean offdiag(X_l^T X_l)^2 ),

    the objective and the settings of Zhang, Yunis and Maire (CVPR 2024, section 3 and their public code) for many
    images. The tables' exponential moving average is read out by a singular value decomposition over all images. The
    graph need not be of low rank, as that of `basis.BasisAccumulator` has to be; but the solution is approximate,
    serves the images given only, and costs far more time.

    Example:
        >>> config = SpectralConfig("what", "knn", num_eigenvectors=16)
        >>> results = DatasetGradientSolver(progress=True).fit([capture.records for capture in captures], config)

    Args:
        rounds: Times that every image takes part in a batch.
        steps_per_batch: Updates of the tables for each batch.
        batch_size: Images in a batch; their layers are in memory at once.
        channels: Columns of X; at least as many as eigenvectors wanted.
        num_inter: Neighbors of a token in other images; `NearestNeighbors.num_neighbors` counts those inside its image.
        learning_rate: Of AdamW.
        average: Decay of the moving average, from 0 (the last tables) to 0.999999. Its start is left out of it.
        block_size: Tokens per block of the search: bounds the memory, does not change the result.
        progress: Show a progress bar.

    Raises:
        SpectralError: If a setting is out of range.
    """

    rounds: int = 60
    steps_per_batch: int = 5
    batch_size: int = 40
    channels: int = 100
    num_inter: int = 50
    learning_rate: float = 1e-2
    average: float = 0.99
    block_size: int = 512
    progress: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        keep_ints(self, "rounds", "steps_per_batch", "batch_size", "channels", "num_inter", "block_size")
        keep_numbers(self, average=(0, 1 - 1e-6), learning_rate=(0, math.inf))

    @plain_torch()
    def fit(self, images: Images, config: SpectralConfig | None = None) -> list[SpectralResult]:
        """Optimize, then read out.

        Args:
            images: Records of each image, all layers of one backbone; an item is looked at when its batch is due, so
                that a sequence may run the backbone anew. Images may differ in size.
            config: Pathway, layers, number of eigenvectors and seed, with an affinity `NearestNeighbors(...)`; None
                takes the paper's.

        Returns:
            One result per image, on its finest grid and on the CPU. Eigenvectors are in the order of their singular
            values (`solver["singular_values"]`), orthonormal over all images together; an eigenvalue is 1 minus the
            Rayleigh quotient over the batches of one last round, so that eigenvalues ascend only roughly. The steps are
            the stopping rule: the status is `NOT_CHECKED`.

        Raises:
            SpectralError: If there are no images, their layers differ, or a setting cannot serve.
        """
        config = config or SpectralConfig("what", "knn")
        self._check(images, config)

        def chosen(place: int) -> list[AttentionRecord]:
            return [record for record, _ in taking_part(images[place], config)[0]]

        assert isinstance(config.affinity, NearestNeighbors)
        settings = NeighborSettings(config.pathway, config.affinity, self.num_inter, self.block_size)
        generator = torch.Generator().manual_seed(config.seed)
        tables = _Tables(map(chosen, range(len(images))), self, generator)
        batches = _Batches(chosen, len(images), settings, self.batch_size, generator)
        total = self.rounds * batches.per_round * self.steps_per_batch
        with torch.enable_grad(), tqdm(total=total, disable=not self.progress, desc="DatasetGradientSolver") as bar:
            for _ in range(self.rounds):
                for members, graphs in batches.round():
                    for _ in range(self.steps_per_batch):
                        loss = _objective([tables.softmax(image) for image in members], graphs)
                        tables.update(loss, members)
                        bar.update()
        return self._read_out(tables, batches, config, chosen(0))

    def _read_out(
        self, tables: _Tables, batches: _Batches, config: SpectralConfig, records: Sequence[AttentionRecord]
    ) -> list[SpectralResult]:
        vectors, singular_values = _singular_vectors(tables.averaged(), config.num_eigenvectors)
        maps = [
            grid.to_map(part.float())
            for grid, part in zip(tables.grids, vectors.split([grid.num_nodes for grid in tables.grids]), strict=True)
        ]
        quotients, residuals = _quotients(maps, batches)
        described = {**dataclasses.asdict(self), "singular_values": singular_values.tolist()}
        # Ratio of the sides, as in `dataset_graph.GridGraph`.
        plain = [(tables.grids[0].num_nodes / record.grid.num_nodes) ** 0.5 for record in records]
        return [
            SpectralResult(
                eigenvalues=laplacian_eigenvalues(quotients),
                eigenvectors=one.cpu(),
                residuals=residuals.float().cpu(),
                status=SolveStatus.NOT_CHECKED,
                steps=self.rounds * batches.per_round * self.steps_per_batch,
                grid=grid,
                layers=tuple(record.name for record in records),
                layer_weights=tuple(weight / sum(plain) for weight in plain),
                config=config,
                solver={"name": type(self).__name__, **described},
            )
            for one, grid in zip(maps, tables.grids, strict=True)
        ]

    def _check(self, images: Images, config: SpectralConfig) -> None:
        if not len(images):
            raise SpectralError("images", expected="at least one image", got="none", fix="Give records of images")
        if not isinstance(config.affinity, NearestNeighbors) or config.heads != "merged":
            raise SpectralError(
                "config",
                expected="affinity=NearestNeighbors(...) and heads='merged'",
                got=f"affinity={config.affinity!r} and heads={config.heads!r}",
                fix=f"Use SpectralConfig({config.pathway!r}, 'knn')",
            )
        if config.layer_weights != "equal":
            raise SpectralError(
                "layer_weights",
                expected="'equal': this solver weighs layers as the paper does, by their resolution",
                got=config.layer_weights,
                fix="Leave it out, or use fit",
            )
        if config.num_eigenvectors > self.channels:
            raise SpectralError(
                "num_eigenvectors",
                expected=f"at most the number of channels, {self.channels}",
                got=config.num_eigenvectors,
                fix="Ask for fewer, or give DatasetGradientSolver(channels=...)",
            )


class _Tables:
    """One table of free numbers per image, its optimizer and its moving average."""

    def __init__(
        self, images: Iterable[list[AttentionRecord]], settings: DatasetGradientSolver, generator: torch.Generator
    ) -> None:
        self.grids: list[TokenGrid] = []
        self._tables: list[Tensor] = []
        for records in images:
            grid = finest([record.grid for record in records])
            start = torch.randn(settings.channels, grid.height, grid.width, dtype=torch.float32, generator=generator)
            self.grids.append(grid)
            self._tables.append(start.to(records[0].value.device).requires_grad_())
        self._optimizer = torch.optim.AdamW(self._tables, lr=settings.learning_rate)
        self._average = settings.average
        self._sums = [torch.zeros_like(table, requires_grad=False) for table in self._tables]
        self._updates = [0] * len(self._tables)

    def softmax(self, image: int) -> Float[Tensor, "channels height width"]:
        return self._tables[image].softmax(dim=0)

    def update(self, loss: Tensor, members: Sequence[int]) -> None:
        """Take one step with the tables of a batch; the others have no gradient and stay."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        with torch.no_grad():
            for image in members:
                self._sums[image].mul_(self._average).add_(self._tables[image], alpha=1 - self._average)
                self._updates[image] += 1

    def averaged(self) -> Float[Tensor, "nodes channels"]:
        """Return X of all images from the averaged tables, each divided by the sum of its weights."""
        parts = [
            (total / (1 - self._average**count)).softmax(dim=0).flatten(1).T
            for total, count in zip(self._sums, self._updates, strict=True)
        ]
        return torch.cat(parts)


@dataclasses.dataclass
class _Batches:
    """Random batches of images with their graphs; a batch of all images is built once."""

    chosen: Callable[[int], list[AttentionRecord]]
    num_images: int
    settings: NeighborSettings
    batch_size: int
    generator: torch.Generator
    whole: list[GridGraph] | None = None

    @property
    def per_round(self) -> int:
        return -(-self.num_images // self.batch_size)

    def round(self) -> Iterator[tuple[list[int], list[GridGraph]]]:
        """Yield every image once, in batches of nearly equal size."""
        if self.per_round == 1:
            members = list(range(self.num_images))
            self.whole = self.whole or self._graphs(members)
            yield members, self.whole
            return
        order = torch.randperm(self.num_images, generator=self.generator)
        for part in order.tensor_split(self.per_round):
            members = part.tolist()
            yield members, self._graphs(members)

    @torch.no_grad()
    def _graphs(self, members: list[int]) -> list[GridGraph]:
        return batch_graphs(list(map(self.chosen, members)), self.settings)


def _objective(maps: list[Float[Tensor, "channels _h _w"]], graphs: list[GridGraph]) -> Float[Tensor, ""]:
    total = torch.zeros((), dtype=torch.float32, device=maps[0].device)
    for graph in graphs:
        vectors = nn.functional.normalize(_pooled(maps, graph), dim=0)
        total = total + graph.weight * objective(vectors, vectors, graph.affinity, graph.num_layers)
    return total / sum(graph.num_layers for graph in graphs)


def _pooled(maps: list[Float[Tensor, "channels _h _w"]], graph: GridGraph) -> Float[Tensor, "nodes channels"]:
    parts = [
        (one if pools is None else pools[0] @ one @ pools[1].T).flatten(1).T
        for one, pools in zip(maps, graph.pools, strict=True)
    ]
    return torch.cat(parts)


def _singular_vectors(
    matrix: Float[Tensor, "nodes channels"], count: int
) -> tuple[Float[Tensor, "nodes eigenvectors"], Float[Tensor, " eigenvectors"]]:
    """Return the leading left singular vectors and values of X under columns of unit norm, by its Gram matrix.

    Columns of zeros take the place of those that the rank of X does not reach.
    """
    columns = nn.functional.normalize(matrix.to(with_float64(matrix.device)).double(), dim=0)
    squares, rotation = torch.linalg.eigh((columns.T @ columns).cpu())
    values = squares.flip(0)[:count].clamp_min(0).sqrt()
    inverse = torch.where(values > _DEPENDENT * values[0], 1 / values, torch.zeros_like(values))
    vectors = columns @ (rotation.flip(1)[:, :count] * inverse).to(columns.device)
    return fix_signs(vectors.float().to(matrix.device)), values.float()


def _quotients(maps: list[Float[Tensor, "eigenvectors _h _w"]], batches: _Batches) -> tuple[Tensor, Tensor]:
    """Return Rayleigh quotients and residual norms over the batches of one more round."""
    forms = torch.zeros(5, len(maps[0]), dtype=torch.float64)
    for members, graphs in batches.round():
        batch = [maps[image] for image in members]
        products = [torch.zeros_like(one) for one in batch]
        masses = [torch.zeros_like(one) for one in batch]
        scale = 1 / sum(graph.num_layers for graph in graphs)
        for graph in graphs:
            vectors = _pooled(batch, graph)
            _add_spread(products, graph.affinity.matmul(vectors), graph, scale * graph.weight)
            _add_spread(masses, vectors, graph, scale * graph.weight * graph.num_layers)
        for vectors, product, mass in zip(batch, products, masses, strict=True):
            pairs = ((vectors, product), (vectors, mass), (product, product), (product, mass), (mass, mass))
            forms += torch.stack([(left * right).cpu().double().sum((1, 2)) for left, right in pairs])
    affinity, mass_form, squares, mixed, mass_squares = forms
    quotients = affinity / mass_form.clamp_min(torch.finfo(torch.float64).tiny)
    return quotients, (squares - 2 * quotients * mixed + quotients**2 * mass_squares).clamp_min(0).sqrt()


def _add_spread(
    maps: list[Float[Tensor, "eigenvectors _h _w"]],
    vectors: Float[Tensor, "nodes eigenvectors"],
    graph: GridGraph,
    scale: float,
) -> None:
    """Add a multiple of P^T x to the maps on the common grids."""
    shapes = [
        tuple(one.shape[1:]) if pools is None else (pools[0].shape[0], pools[1].shape[0])
        for one, pools in zip(maps, graph.pools, strict=True)
    ]
    parts = vectors.split([height * width for height, width in shapes])
    for one, part, shape, pools in zip(maps, parts, shapes, graph.pools, strict=True):
        values = part.T.reshape(-1, *shape)
        one.add_(values if pools is None else pools[0].T @ values @ pools[1], alpha=scale)
