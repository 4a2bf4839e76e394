"""Scores of dataset-level eigenvectors: the share of position (*where*) and of identity (*what*), without labels."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Integer
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.metrics.identity import surrounding_clusters
from hf_spectral.metrics.variance import VarianceShares, require_images
from hf_spectral.torch_state import plain_torch

Maps = Float[Tensor, "images eigenvectors height width"] | Sequence[Float[Tensor, "eigenvectors _h _w"]]

#: Number of cells along each side of the image, used if the grids of the images differ.
DEFAULT_BINS = 16


@plain_torch()
def where_score(eigenvectors: Maps, bins: int | None = None) -> Float[Tensor, " eigenvectors"]:
    """Return the share of each dataset-level eigenvector's variance that the position of a token explains.

    The score is the correlation ratio of eigenvector j given position p over images i,
    R_j^2 = Var_p(mean_i x_ijp) / Var_ip(x_ijp). If the grids of the images differ, each image is divided into
    `bins` x `bins` equal cells, and a token belongs to the cell that contains its center. All images have the same
    weight. The eigenvectors must come from one dataset-level problem, because the signs of those of separate images
    are arbitrary. Use many images: with n images, maps that are independent of position still score about 1/n.

    Args:
        eigenvectors: Eigenvectors of at least two images, as one tensor, or as a sequence with one entry per image.
        bins: Number of cells along each side. None takes the token grid if all images share one, otherwise 16.

    Returns:
        One score per eigenvector, from 0 (independent of position, or constant) to 1 (the same map in every image).

    Raises:
        SpectralError: If there are fewer than two images, or the number of eigenvectors differs between images.

    Reference:
        Pearson's correlation ratio, applied to the pathways of Zhang, Yunis, Maire, CVPR 2024.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import where_score
        >>> same_map_in_every_image = torch.rand(1, 2, 6, 6).expand(10, 2, 6, 6)
        >>> [round(score, 3) for score in where_score(same_map_in_every_image).tolist()]
        [1.0, 1.0]
    """
    return _added(eigenvectors, bins).where()


@plain_torch()
def image_score(eigenvectors: Maps) -> Float[Tensor, " eigenvectors"]:
    """Return the share of each dataset-level eigenvector's variance that the image of a token explains.

    The score is Var_i(mean_p x_ijp) / Var_ip(x_ijp). If all images share one grid, `where_score`, `image_score` and
    `what_score` add up to at most 1; the remainder is noise.

    Args:
        eigenvectors: Eigenvectors of at least two images, as one tensor, or as a sequence with one entry per image.

    Returns:
        One score per eigenvector, from 0 (all images have the same mean, or constant) to 1 (every image is uniform).

    Raises:
        SpectralError: If there are fewer than two images, or the number of eigenvectors differs between images.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import image_score
        >>> uniform_images = torch.rand(10, 2, 1, 1).expand(10, 2, 6, 6)
        >>> [round(score, 3) for score in image_score(uniform_images).tolist()]
        [1.0, 1.0]
    """
    return _added(eigenvectors, 1).image()


@plain_torch()
def what_score(
    eigenvectors: Maps,
    clusters: Sequence[Integer[Tensor, "_h _w"]] | None = None,
    num_segments: int = 20,
    bins: int | None = None,
    seed: int = 0,
) -> Float[Tensor, " eigenvectors"]:
    """Return the share of each dataset-level eigenvector's variance that identity explains beyond position and image.

    The score is based on an analysis of variance with two additive effects, x_ijp = mean + image_i + position_p +
    r_ijp. The residual r contains identity, which is at different positions in different images, and noise. To separate
    the two, the tokens are partitioned into clusters c:

        what_j = sum_c weight_c m_jc m'_jc / Var_ip(x_ijp),

    where m_jc and m'_jc are the means of r over cluster c in the even and in the odd images. Image and position effects
    are estimated separately in each half, so for noise the expected product is 0 for any number of clusters, and a
    cluster contributes only if its mean is the same in both halves. (If both halves were the same data, the sum would
    be the variance between clusters, as in the correlation ratio.)

    By default, `surrounding_clusters` infers the cluster of each token from its neighbors, without the token's own
    value. As a consequence, identity counts only if it extends over several tokens, tokens at the border of an object
    may be assigned wrongly, so that even perfect identity scores slightly below 1, and smooth random maps are partly
    counted as identity. Pass `clusters` (from a reference representation, or human labels) to compare several
    representations; with labels, the score is the share that the labeled classes explain. The two halves should not
    contain near-duplicates of each other's images.

    Args:
        eigenvectors: Eigenvectors of at least four images, as one tensor, or as a sequence with one entry per image.
        clusters: One map per image with the cluster of each token, non-negative integers. None infers the clusters.
        num_segments: Number of clusters to infer.
        bins: Number of cells along each side. None takes the token grid if all images share one, otherwise 16.
        seed: Random seed of k-means.

    Returns:
        One score per eigenvector, from 0 (only position, image and noise, or constant) to 1 (the value depends only on
        the identity of the token). `where_score` + `image_score` + `what_score` is at most 1, up to sampling error.

    Raises:
        SpectralError: If there are fewer than four images, the number of eigenvectors differs between images, or
            `clusters` does not match the images.

    Reference:
        Our own. Two-way analysis of variance and the correlation ratio after Fisher (1925); the product of independent
        halves after the cross-validated distances of Walther et al., NeuroImage 2016.

    Example:
        >>> import torch
        >>> from hf_spectral.metrics import what_score
        >>> classes = torch.randint(2, (200, 6, 6), generator=torch.Generator().manual_seed(0))
        >>> bool(what_score(classes[:, None].float(), clusters=list(classes)) > 0.9)
        True
    """
    maps = _checked(eigenvectors, 4)
    if clusters is None:
        clusters = surrounding_clusters(maps, _cells(maps, bins), num_segments, seed)
    grids = [tuple(one.shape[1:]) for one in maps]
    if [tuple(one.shape) for one in clusters] != grids or min(int(one.min()) for one in clusters) < 0:
        raise SpectralError(
            "clusters",
            expected=f"{len(maps)} maps of integers from 0, each of the size of its image's token grid",
            got=f"{len(clusters)} maps, of other sizes or with negative numbers",
            fix="Resize the labels to the token grid first, with void as a separate cluster",
        )
    return _added(maps, bins, clusters).what()


def _added(
    eigenvectors: Maps, bins: int | None, clusters: Sequence[Integer[Tensor, "_h _w"]] | None = None
) -> VarianceShares:
    maps = _checked(eigenvectors, 2)
    count = 0 if clusters is None else 1 + max(int(one.max()) for one in clusters)
    shares = VarianceShares(_cells(maps, bins), count)
    for image, one in enumerate(maps):
        shares.add(one, None if clusters is None else clusters[image])
    return shares


def _checked(eigenvectors: Maps, least: int) -> list[Tensor]:
    maps = list(eigenvectors)
    require_images(len(maps), least)
    if len({len(one) for one in maps}) > 1:
        raise SpectralError(
            "eigenvectors",
            expected="the same number of eigenvectors for every image",
            got=sorted({len(one) for one in maps}),
            fix="Pass the eigenvectors of one basis",
        )
    return maps


def _cells(maps: list[Tensor], bins: int | None) -> tuple[int, int]:
    if bins is None and len({one.shape[1:] for one in maps}) == 1:
        return maps[0].shape[1], maps[0].shape[2]
    return bins or DEFAULT_BINS, bins or DEFAULT_BINS
