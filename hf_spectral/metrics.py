"""How well labels match labels, and how much of an eigenvector is position. Pure arithmetic, no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_spectral.errors import SpectralError

Labels = Integer[Tensor, "..."] | Integer[np.ndarray, "..."]


def covering(prediction: Labels, truths: Labels | Sequence[Labels]) -> float:
    """Segmentation covering: how well some predicted segment covers each region of a human map.

    C = 1/N sum_R |R| max_P |R and P| / |R or P| over the regions R of one truth; the mean over truths.

    Args:
        prediction: Segment of each pixel, any integers from 0.
        truths: One map of the same shape, or one from each annotator.

    Returns:
        0 to 1; 1: the same partition, towards 0: every region is covered by a sliver of a segment.

    Reference:
        Arbelaez, Maire, Fowlkes, Malik, Contour Detection and Hierarchical Image Segmentation, TPAMI 2011, section 2.3.
    """

    def score(table: np.ndarray) -> float:
        regions, segments = table.sum(0), table.sum(1)
        overlap = table / np.maximum(regions[None] + segments[:, None] - table, 1)
        return float((regions * overlap.max(0)).sum() / regions.sum())

    return _mean_over_truths(score, prediction, truths)


def adjusted_rand_index(prediction: Labels, truths: Labels | Sequence[Labels]) -> float:
    """Pairs of pixels on which both maps agree (together or apart), corrected for chance.

    Args:
        prediction: Segment of each pixel, any integers from 0.
        truths: One map of the same shape, or one from each annotator; the index is averaged over them.

    Returns:
        -0.5 to 1; 1: the same partition, 0: what random labels of the same sizes reach, below 0: worse than random.

    Reference:
        Hubert, Arabie, Comparing partitions, Journal of Classification 1985.
    """

    def score(table: np.ndarray) -> float:
        together, regions, segments = ((values.astype(float) ** 2).sum() for values in _with_margins(table))
        count = float(table.sum())
        # Numbers of pairs, each times two: sum of n (n - 1).
        both, truth, found, pairs = together - count, regions - count, segments - count, count * (count - 1)
        if pairs == 0 or (truth == found and both == truth):
            return 1.0
        chance = truth * found / pairs
        return (both - chance) / ((truth + found) / 2 - chance)

    return _mean_over_truths(score, prediction, truths)


def variation_of_information(prediction: Labels, truths: Labels | Sequence[Labels]) -> float:
    """Information in either map that the other lacks: H(P | T) + H(T | P), in bits.

    Args:
        prediction: Segment of each pixel, any integers from 0.
        truths: One map of the same shape, or one from each annotator; the distance is averaged over them.

    Returns:
        0 upwards, lower is better; 0: the same partition, 1: one yes-or-no question a pixel is missing. At most
        log2 of the number of pixels. Bits are the unit of the BSDS500 benchmark's own code; times log 2 for nats.

    Reference:
        Meila, Comparing clusterings, Journal of Multivariate Analysis 2007.
    """

    def score(table: np.ndarray) -> float:
        joint, regions, segments = (_entropy(values) for values in _with_margins(table))
        return max(0.0, 2 * joint - regions - segments) / float(np.log(2))

    return _mean_over_truths(score, prediction, truths)


def normalized_mutual_information(
    prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None
) -> float:
    """Mutual information of the two maps over the mean of their entropies.

    Args:
        prediction: Segment of each pixel, any integers from 0.
        truths: One map of the same shape, or one from each annotator; the value is averaged over them.
        void: Pixels with this truth are left out.

    Returns:
        0 to 1; 1: the same partition (two sole segments count as the same), 0: independent labels.

    Reference:
        Strehl, Ghosh, Cluster ensembles, JMLR 2002; arithmetic mean as in scikit-learn.
    """

    def score(table: np.ndarray) -> float:
        joint, regions, segments = (_entropy(values) for values in _with_margins(table))
        if regions + segments == 0:
            return 1.0
        return min(1.0, max(0.0, 2 * (regions + segments - joint) / (regions + segments)))

    return _mean_over_truths(score, prediction, truths, void)


def matched_miou(prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None) -> float:
    """Mean over classes of the intersection over union, after the best one-to-one matching of clusters to classes.

    A class that gets no cluster counts as 0; a cluster that gets no class only loses its pixels. To score a data set,
    concatenate the labels of all its images into one array first, as is the custom.

    Args:
        prediction: Cluster of each pixel, any integers from 0.
        truths: Class of each pixel, same shape, or several such maps; the value is averaged over them.
        void: Pixels with this class are left out.

    Returns:
        0 to 1; 1: clusters and classes are the same, towards 0: no cluster resembles a class.

    Reference:
        Ji, Henriques, Vedaldi, Invariant Information Clustering, ICCV 2019 (matching by Kuhn, 1955).
    """

    def score(table: np.ndarray) -> float:
        present = table[:, table.sum(0) > 0]
        union = present.sum(0)[None] + present.sum(1)[:, None] - present
        overlap = present / np.maximum(union, 1)
        rows, columns = linear_sum_assignment(overlap, maximize=True)
        return float(overlap[rows, columns].sum() / present.shape[1])

    return _mean_over_truths(score, prediction, truths, void)


def purity(prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None) -> float:
    """Share of pixels that belong to the most frequent class of their cluster.

    It rises with the number of clusters: compare only at the same number.

    Args:
        prediction: Cluster of each pixel, any integers from 0.
        truths: Class of each pixel, same shape, or several such maps; the value is averaged over them.
        void: Pixels with this class are left out.

    Returns:
        Above 0 to 1; 1: no cluster mixes classes, towards 0: every cluster mixes many classes evenly.

    Reference:
        Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 2008, section 16.3.
    """
    return _mean_over_truths(lambda table: float(table.max(1).sum() / table.sum()), prediction, truths, void)


def where_score(
    eigenvectors: Float[Tensor, "images eigenvectors height width"] | Sequence[Float[Tensor, "eigenvectors _h _w"]],
    bins: int | None = None,
) -> Float[Tensor, " eigenvectors"]:
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
    maps = list(eigenvectors)
    if len(maps) < 2:
        raise SpectralError(
            "eigenvectors", expected="maps of at least 2 images", got=len(maps), fix="Score a data set, not one image"
        )
    if len({len(one) for one in maps}) > 1:
        raise SpectralError(
            "eigenvectors",
            expected="the same number of eigenvectors for every image",
            got=sorted({len(one) for one in maps}),
            fix="Pass the maps of one basis",
        )
    shared = len({one.shape for one in maps}) == 1
    cells = [_cells(one.shape[1], one.shape[2], None if shared and bins is None else bins or 16) for one in maps]
    count = 1 + max(int(index.max()) for index in cells)
    weight = torch.zeros(count, dtype=torch.float64)
    total = torch.zeros(len(maps[0]), count, dtype=torch.float64)
    first, second = torch.zeros(2, len(maps[0]), dtype=torch.float64)
    for one, index in zip(maps, cells, strict=True):
        values = one.detach().to("cpu", torch.float64).flatten(1)
        share = 1 / values.shape[1]
        weight.index_add_(0, index, torch.full((values.shape[1],), share, dtype=torch.float64))
        total.index_add_(1, index, values * share)
        first, second = first + values.mean(1), second + values.square().mean(1)
    mean = first / len(maps)
    variance = second / len(maps) - mean**2
    used = weight > 0
    offsets = total[:, used] / weight[used] - mean[:, None]
    between = (offsets**2 * weight[used]).sum(1) / len(maps)
    # Below this share of the mean square, the difference is rounding.
    constant = variance <= 1e-12 * (second / len(maps))
    return torch.where(constant, 0.0, between / variance.clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1)


def _cells(height: int, width: int, bins: int | None) -> Integer[Tensor, " nodes"]:
    rows, columns = bins or height, bins or width
    row = ((torch.arange(height) + 0.5) * rows / height).floor().long()
    column = ((torch.arange(width) + 0.5) * columns / width).floor().long()
    return (row[:, None] * columns + column).flatten()


def _mean_over_truths(
    score: Callable[[np.ndarray], float], prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None
) -> float:
    several = [truths] if isinstance(truths, Tensor | np.ndarray) else list(truths)
    if not several:
        raise SpectralError("truths", expected="at least one label map", got="none", fix="Pass one map an annotator")
    return float(np.mean([score(_contingency(prediction, truth, void)) for truth in several]))


def _contingency(prediction: Labels, truth: Labels, void: int | None) -> np.ndarray:
    """Return the pixels of each (segment, region) pair; numbers that do not occur leave no empty rows or columns."""
    if tuple(prediction.shape) != tuple(truth.shape):
        raise SpectralError(
            "truths",
            expected=f"the shape of the prediction, {tuple(prediction.shape)}",
            got=tuple(truth.shape),
            fix="Segment with size=(height, width) of the label map",
        )
    found, wanted = _flat("prediction", prediction), _flat("truths", truth)
    if void is not None:
        found, wanted = found[wanted != void], wanted[wanted != void]
    if not found.size:
        raise SpectralError("truths", expected="at least one labelled pixel", got="none", fix="Leave this image out")
    rows, columns = int(found.max()) + 1, int(wanted.max()) + 1
    if rows * columns > 4 * found.size + 65_536:  # numbers with gaps: the table would be larger than the maps
        found, wanted = (np.unique(values, return_inverse=True)[1] for values in (found, wanted))
        rows, columns = int(found.max()) + 1, int(wanted.max()) + 1
    table = np.bincount(found * columns + wanted, minlength=rows * columns).reshape(rows, columns)
    return table[np.ix_(table.any(1), table.any(0))]


def _flat(argument: str, labels: Labels) -> np.ndarray:
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels
    if values.dtype.kind not in "iu" or (values.size and values.min() < 0):
        raise SpectralError(
            argument,
            expected="integers from 0",
            got=f"{values.dtype} labels",
            fix="Map void to a number and pass `void`",
        )
    return values.ravel().astype(np.int64)


def _with_margins(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the table's cells, then its sums over segments (regions) and over regions (segments)."""
    return table.ravel(), table.sum(0), table.sum(1)


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
