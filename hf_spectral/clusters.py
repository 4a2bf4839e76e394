"""Clusters of the tokens of a dataset, kept so that they label images that were not clustered, too."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clusters over a whole dataset: the same number means the same thing in every image, seen or not.

    A token's row is its first eigenvectors without the trivial one, as a unit vector u (Ng, Jordan, Weiss, NIPS 2001),
    then the unit vector along (u - mean) @ directions. Its cluster is that of the nearest center. Made by
    `segmentation.find_clusters`.

    Args:
        mean: Mean of u over the sample of tokens that was clustered. Its length says how many eigenvectors are taken.
        directions: Linear discriminants, one per column, the most telling first.
        centers: Centers of k-means, of which a cluster has several.
        cluster: Cluster of each center, from 0, the largest.
        num_segments: How many clusters were asked for; there are fewer where fewer tokens differ.
        walk: Strength of the walk inside each image (`SpectralBasis.project`) that its eigenvectors need.
    """

    mean: Float[Tensor, " channels"]
    directions: Float[Tensor, "channels directions"]
    centers: Float[Tensor, "centers directions"]
    cluster: Int[Tensor, " centers"]
    num_segments: int
    walk: float

    @property
    def num_found(self) -> int:
        """How many clusters there are."""
        return int(self.cluster.max()) + 1

    def distances(
        self, eigenvectors: Float[Tensor, "eigenvectors height width"]
    ) -> Float[Tensor, "centers height width"]:
        """Return how far each token is from each center.

        Args:
            eigenvectors: Maps of one image, the trivial one at index 0, in any scale. Those beyond the ones that the
                clusters take are left out.

        Returns:
            Euclidean distances, from 0 to 2.
        """
        taken = eigenvectors[: len(self.mean) + 1]
        rows = discriminant_rows(unit_rows(taken).to(self.mean), self.mean, self.directions)
        return torch.cdist(rows, self.centers).T.reshape(-1, *eigenvectors.shape[1:])


def unit_rows(eigenvectors: Float[Tensor, "eigenvectors height width"]) -> Float[Tensor, "nodes channels"]:
    """Return the direction of each token's eigenvectors, the trivial one left out; a zero row stays zero.

    Args:
        eigenvectors: Maps of one image, the trivial one at index 0.

    Returns:
        One unit vector per token, float32.
    """
    return normalize(eigenvectors[1:].detach().cpu().float().flatten(1).T, dim=1)


def discriminant_rows(
    rows: Float[Tensor, "nodes channels"],
    mean: Float[Tensor, " channels"],
    directions: Float[Tensor, "channels directions"],
) -> Float[Tensor, "nodes directions"]:
    """Return the rows in discriminant directions, as unit vectors.

    Args:
        rows: Unit vectors, one per token.
        mean: Their mean.
        directions: One per column.

    Returns:
        One unit vector per token.
    """
    return normalize((rows - mean) @ directions, dim=1)
