"""Sums over a shard of a dataset: shards and processes are combined by addition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_spectral.affinities import NearestNeighbors
from hf_spectral.basis.factors import BasisLayer
from hf_spectral.basis.gram import BlockGram, Coupling, Shape
from hf_spectral.basis.walk import NEIGHBORS
from hf_spectral.errors import SpectralError
from hf_spectral.operators import cosines_with_others
from hf_spectral.records import Pathway, UnitTokens

# Neighbors of every eighth token are sought, among all tokens of its image: enough for a mean over a dataset.
_STRIDE = 8
# Tokens whose neighbors are sought at once: bounds the memory of a large image.
_ROWS = 1024


class Totals:
    """Sums of the first pass (F over tokens) and of the second (the Gram matrix), with their counts.

    Args:
        layers: The layers.
        pathway: Sets the width of each layer's factor.
        device: Where the sums live.
        has_evidence: Collect what automatic layer weights need in the second pass.
        estimates_degrees: The first pass may see fewer images than the second.
    """

    def __init__(
        self,
        layers: Sequence[BasisLayer],
        pathway: Pathway,
        device: torch.device,
        has_evidence: bool = False,
        estimates_degrees: bool = False,
    ) -> None:
        self.layers = tuple(layers)
        self.ranks = [layer.rank(pathway) for layer in layers]
        self.signs = [layer.signs(pathway).to(device) for layer in layers]
        self.sums = [torch.zeros(rank, dtype=torch.float64, device=device) for rank in self.ranks]
        # Counts stay on the CPU: the host adds them up and reads them without waiting for the device.
        self.num_tokens = torch.zeros(len(layers), dtype=torch.int64)
        self._counts = torch.zeros(1, dtype=torch.int64)
        self._gram_counts = torch.zeros(3, dtype=torch.int64)
        self._device = device
        self.gram: BlockGram | None = None
        self.has_evidence = has_evidence
        self.estimates_degrees = estimates_degrees
        self.evidence: list[Tensor] = []

    @property
    def num_summed(self) -> int:
        """Images of the first pass."""
        return int(self._counts[0])

    @property
    def num_in_gram(self) -> int:
        """Images of the second pass."""
        return int(self._gram_counts[0])

    @property
    def num_mixed(self) -> int:
        """Images of the second pass whose layers differ in resolution."""
        return int(self._gram_counts[1])

    @property
    def num_nodes(self) -> int:
        """Nodes of the common grids of the second pass."""
        return int(self._gram_counts[2])

    @property
    def is_complete(self) -> bool:
        """True once the second pass has seen as many images as the first, or more where degrees are estimated."""
        left = self.num_in_gram - self.num_summed
        return self.gram is not None and (left == 0 or (left > 0 and self.estimates_degrees))

    def start_gram(self) -> BlockGram:
        """Return the Gram matrix, zero at the first call; the sums are final from then on."""
        if self.gram is None:
            self.gram = BlockGram(self.ranks, device=self._device)
            if self.has_evidence:
                shapes = [(2, rank, rank) for rank in self.ranks]
                self.evidence = [torch.zeros(shape, dtype=torch.float64, device=self._device) for shape in shapes]
        return self.gram

    def add_sums(self, sums: Sequence[Tensor], num_tokens: Sequence[int], num_images: int) -> None:
        """Add a batch to the first pass.

        Args:
            sums: Sum of F of each layer, float64.
            num_tokens: Tokens of each layer.
            num_images: Images.
        """
        for total, part in zip(self.sums, sums, strict=True):
            total += part
        self.num_tokens += torch.tensor(num_tokens)
        self._counts += num_images

    def add_gram(
        self, factors: Sequence[Tensor], shapes: Sequence[Shape], joint: Coupling | None, num_nodes: int
    ) -> None:
        """Add one image to the second pass.

        Args:
            factors: G of each layer.
            shapes: Grid of each layer.
            joint: Coupling of the grids.
            num_nodes: Nodes of the common grid.
        """
        self.start_gram().add(factors, shapes, joint)
        self._gram_counts += torch.tensor([1, joint is not None, num_nodes])

    def add_evidence(self, tokens: Sequence[UnitTokens], factors: Sequence[Tensor], image: int) -> None:
        """Add what automatic layer weights need of one image to the second pass, if it is to be collected.

        Args:
            tokens: Unit vectors of each layer, all on one grid.
            factors: G of each layer.
            image: Position in the batch.
        """
        self.start_gram()
        if self.has_evidence:
            add_evidence(self.evidence, tokens, factors, image, NEIGHBORS)

    def tensors(self) -> dict[str, Tensor]:
        """Return the live sums by name; names that begin with `gram` belong to the second pass."""
        named = {"counts": self._counts, "num_tokens": self.num_tokens, "gram_counts": self._gram_counts}
        named |= {f"sum.{position}": total for position, total in enumerate(self.sums)}
        if self.gram is not None:
            named |= {f"gram.{position}": block for position, block in enumerate(self.gram.blocks)}
            named |= {f"gram_evidence.{position}": one for position, one in enumerate(self.evidence)}
        return named

    def merge(self, other: Totals) -> None:
        """Add another shard in the same pass.

        Args:
            other: Its totals; they stay as they are.

        Raises:
            SpectralError: If one shard is in the second pass and the other is not, or their first passes differ there.
        """
        in_gram = self.gram is not None
        if in_gram != (other.gram is not None) or (in_gram and not self._same_sums(other)):
            raise SpectralError(
                "other",
                expected="a shard in the same pass, in the second one with the same merged sums",
                got="sums of its own" if in_gram and other.gram is not None else "one shard in each pass",
                fix="Merge all shards after the first pass, and hand the merged state to each",
            )
        mine, theirs = self.tensors(), other.tensors()
        for name, tensor in mine.items():
            if name.startswith("gram") or not in_gram:
                tensor += theirs[name].to(tensor.device)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the sums.

        Args:
            tensors: What `tensors` gave.

        Raises:
            SpectralError: If a tensor is missing or of another form.
        """
        if any(name.startswith("gram.") for name in tensors):
            self.start_gram()
        for name, tensor in self.tensors().items():
            given = tensors.get(name)
            if given is None or given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise SpectralError(
                    "state",
                    expected=f"a tensor {name!r} of shape {tuple(tensor.shape)} and type {tensor.dtype}",
                    got="none" if given is None else f"{tuple(given.shape)}, {given.dtype}",
                    fix="Start the fit anew",
                )
            tensor.copy_(given)

    def _same_sums(self, other: Totals) -> bool:
        mine, theirs = torch.cat(self.sums), torch.cat(other.sums).to(self.sums[0].device)
        return torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


def add_evidence(
    totals: Sequence[Float[Tensor, "2 _rank _rank"]],
    tokens: Sequence[UnitTokens],
    factors: Sequence[Float[Tensor, "nodes _rank"]],
    image: int,
    neighbors: NearestNeighbors,
) -> None:
    """Add the sums of one image from which the smoothness of any combination of a layer's columns follows.

    With P the mean over a token's nearest neighbors, averaged over all layers, and x = G v, both x^T x and x^T P x are
    quadratic forms of v: G^T G and G^T P G, added up over a dataset, give the smoothness x^T P x / x^T x of any v
    later. All layers share their neighbors, because a layer of pure noise is smooth among neighbors that its own noise
    chooses.

    Args:
        totals: Both matrices of each layer, changed in place.
        tokens: Unit vectors of each layer, all on one grid.
        factors: G of each layer of the same image.
        image: Position in the batch.
        neighbors: Which tokens are neighbors.
    """
    num_nodes = factors[0].shape[0]
    for asking in torch.arange(0, num_nodes, _STRIDE, device=factors[0].device).split(_ROWS):
        walk = factors[0].new_zeros(len(asking), num_nodes)
        for parts in tokens:
            left, right = parts[0][image], (parts[1][image] if len(parts) > 1 else None)
            others = cosines_with_others(left, right, asking)
            cosines, columns = others.topk(min(neighbors.num_neighbors, num_nodes - 1), dim=1)
            cosines = torch.where(cosines > neighbors.threshold, cosines, torch.zeros_like(cosines))
            sums = cosines.sum(1, keepdim=True).clamp_min(torch.finfo(cosines.dtype).tiny)
            walk.scatter_add_(1, columns, cosines / sums / len(tokens))
        for total, factor in zip(totals, factors, strict=True):
            own = factor[asking]
            total[0] += own.T @ own
            total[1] += own.T @ (walk @ factor)
