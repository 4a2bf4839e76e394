"""How well labels match labels. Pure arithmetic on counts of pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Integer
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


def majority_miou(prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None) -> float:
    """Mean over classes of the intersection over union, after every cluster took the most frequent class of its pixels.

    Several clusters may take one class, so that more clusters than classes cost nothing, and the measure rises with
    their number: compare only at the same number, and beside `matched_miou`. A class that is nowhere the most frequent
    one counts as 0.

    Args:
        prediction: Cluster of each pixel, any integers from 0.
        truths: Class of each pixel, same shape, or several such maps; the value is averaged over them.
        void: Pixels with this class are left out.

    Returns:
        0 to 1; 1: every cluster lies inside one class, towards 0: one class is the most frequent everywhere.

    Reference:
        Van Gansbeke, Vandenhende, Georgoulis, Van Gool, Unsupervised Semantic Segmentation by Contrasting Object Mask
        Proposals, ICCV 2021 (evaluation of overclustering).
    """

    def score(table: np.ndarray) -> float:
        chosen = table.argmax(1)
        merged = np.zeros((table.shape[1], table.shape[1]), dtype=table.dtype)
        np.add.at(merged, chosen, table)
        union = merged.sum(0) + merged.sum(1) - merged.diagonal()
        return float((merged.diagonal() / union).mean())

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
