"""How much of a dataset-level eigenvector is position (*where*), how much identity (*what*). No labels are needed."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Integer
from torch import Tensor

from hf_spectral.errors import SpectralError
from hf_spectral.metrics.identity import surrounding_clusters
from hf_spectral.metrics.variance import VarianceShares, require_images

Maps = Float[Tensor, "images eigenvectors height width"] | Sequence[Float[Tensor, "eigenvectors _h _w"]]

#: Cells along each side of the picture where the grids of the images differ.
DEFAULT_BINS = 16


def where_score(eigenvectors: Maps, bins: int | None = None) -> Float[Tensor, " eigenvectors"]:
    """Share of each dataset-level eigenvector's variance that the position of a token explains alone.

    R_j^2 = Var_p(mean_i x_ijp) / Var_ip(x_ijp): the correlation ratio of eigenvector j given position p, over images i.
    Images of different grids share positions by area: the picture is divided into `bins` x `bins` equal cells, tokens
    fall into the cell that holds their center, and the variance between cells is that of the cell means weighted by
    their tokens, every image weighing the same. Only eigenvectors of one common problem may be compared (those of
    single images have a free sign each). With n images, maps that ignore position still score about 1/n: use many.

    Args:
        eigenvectors: Maps of all images, or one entry an image where grids differ; at least two images.
        bins: Cells along each side; `None`: the grid itself if all images share one, else 16.

    Returns:
        One value an eigenvector, 0 to 1; 1: the same map in every image (pure *where*), 0: position says nothing
        (pure *what*). A constant eigenvector scores 0.

    Raises:
        SpectralError: If there are fewer than two images, or numbers of eigenvectors differ.

    Reference:
        Pearson's correlation ratio; used to tell the pathways of Zhang, Yunis, Maire, CVPR 2024, apart.
    """
    return _added(eigenvectors, bins).where()


def image_score(eigenvectors: Maps) -> Float[Tensor, " eigenvectors"]:
    """Share of each dataset-level eigenvector's variance that the image a token belongs to explains alone.

    Var_i(mean_p x_ijp) / Var_ip(x_ijp). With `where_score` and `what_score` it adds up to 1 at most (images of one
    grid); the rest is what neither position, nor image, nor identity accounts for.

    Args:
        eigenvectors: Maps of all images, or one entry an image where grids differ; at least two images.

    Returns:
        One value an eigenvector, 0 to 1; 1: each image is one flat value, 0: all images have the same mean. A constant
        eigenvector scores 0.

    Raises:
        SpectralError: If there are fewer than two images, or numbers of eigenvectors differ.
    """
    return _added(eigenvectors, 1).image()


def what_score(
    eigenvectors: Maps,
    clusters: Sequence[Integer[Tensor, "_h _w"]] | None = None,
    num_clusters: int = 20,
    bins: int | None = None,
    seed: int = 0,
) -> Float[Tensor, " eigenvectors"]:
    """Share of each dataset-level eigenvector's variance that identity explains beyond position and image.

    Analysis of variance with two additive effects, x_ijp = mean + image_i + position_p + r_ijp: a map that only says
    where a token lies, or in which image, leaves r = 0. What is left is identity, that moves from place to place
    between images, or noise. A partition c(i, p) of all tokens tells these apart: identity has a value a cluster,

        what_j = sum_c weight_c m_jc m'_jc / Var_ip(x_ijp),

    m_jc and m'_jc being the means of r over cluster c in the even and in the odd images, which share neither image nor
    position effects: for noise the product is 0 in expectation, whatever the number of clusters, and a cluster counts
    as far as it has the same value in images it was not measured on. (As r sums to 0 in each half, with all the data in
    both it would be the variance between clusters, as in the correlation ratio.)

    Without labels, the partition comes from the eigenvectors: `surrounding_clusters` infers each token's cluster from
    its neighbors without the token's own value, for clusters of values would explain noise too. Hence identity counts
    where it extends over several tokens; tokens on its border are guessed, so that even perfect identity stays below 1
    by about their share. A smooth random map counts partly as identity: without labels none can tell. Given `clusters`
    (of one reference representation, say, or human labels) scores of several representations are comparable, and with
    labels it is the share that the labeled classes explain. Images of one half should not be twins of the other's.

    Args:
        eigenvectors: Maps of all images, or one entry an image where grids differ; at least four images.
        clusters: Cluster of each token, integers from 0, one map an image; None infers them.
        num_clusters: Clusters to infer.
        bins: Cells along each side that stand for positions; `None`: the grid itself if all images share one, else 16.
        seed: Seed of k-means.

    Returns:
        One value an eigenvector, 0 to 1; 1: its value depends on the identity of the token only and no image or
        position has more of it than another (pure *what*), 0: position, image and noise are all there is. A constant
        eigenvector scores 0. `where_score` + `image_score` + `what_score` is at most 1 up to sampling error.

    Raises:
        SpectralError: If there are fewer than four images, or numbers of eigenvectors or maps differ.

    Reference:
        Our own. Two-way analysis of variance and the correlation ratio after Fisher (1925); the product of independent
        halves after the cross-validated distances of Walther et al., NeuroImage 2016.
    """
    maps = _checked(eigenvectors, 4)
    if clusters is None:
        clusters = surrounding_clusters(maps, _cells(maps, bins), num_clusters, seed)
    grids = [tuple(one.shape[1:]) for one in maps]
    if [tuple(one.shape) for one in clusters] != grids or min(int(one.min()) for one in clusters) < 0:
        raise SpectralError(
            "clusters",
            expected=f"{len(maps)} maps of integers from 0, each of its image's token grid",
            got=f"{len(clusters)} maps, of other grids or with negative numbers",
            fix="Bring labels to the token grid first, void as a cluster of its own",
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
            fix="Pass the maps of one basis",
        )
    return maps


def _cells(maps: list[Tensor], bins: int | None) -> tuple[int, int]:
    if bins is None and len({one.shape[1:] for one in maps}) == 1:
        return maps[0].shape[1], maps[0].shape[2]
    return bins or DEFAULT_BINS, bins or DEFAULT_BINS
