"""Scores that compare a segmentation with ground truth, computed from the labels of the pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Integer
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from hf_spectral.errors import SpectralError

#: Labels of pixels; a PIL image as the pipelines give it.
Labels = Integer[Tensor, "..."] | Integer[np.ndarray, "..."] | Image.Image


def covering(prediction: Labels, truths: Labels | Sequence[Labels]) -> float:
    """Return the segmentation covering: how well the predicted segments cover the regions of a human annotation.

    C = 1/N sum_R |R| max_P |R and P| / |R or P|, where R runs over the regions of the truth and N is the number of
    pixels. With several truths, the result is the mean over them.

    Args:
        prediction: Segment of each pixel, non-negative integers.
        truths: One label map of the same shape, or one map per annotator.

    Returns:
        A score from 0 to 1. It is 1 for identical partitions, and near 0 if only small segments overlap each region.

    Reference:
        Arbelaez, Maire, Fowlkes, Malik, Contour Detection and Hierarchical Image Segmentation, TPAMI 2011, section 2.3.

    Example:
        >>> import numpy as np
        >>> from hf_spectral.metrics import covering
        >>> covering(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
        0.5833333333333333
    """
    tables = _tables(prediction, truths)
    return _mean(_overlaps(table).max(0) @ table.sum(0) / table.sum() for table in tables)


def adjusted_rand_index(prediction: Labels, truths: Labels | Sequence[Labels]) -> float:
    """Return the share of pixel pairs on which both partitions agree, corrected for chance.

    Args:
        prediction: Segment of each pixel, non-negative integers.
        truths: One label map of the same shape, or one map per annotator; the index is averaged over them.

    Returns:
        A score from -0.5 to 1. It is 1 for identical partitions and 0 in expectation for random labels.

    Reference:
        Hubert, Arabie, Comparing partitions, Journal of Classification 1985; `sklearn.metrics.adjusted_rand_score`.

    Example:
        >>> import numpy as np
        >>> from hf_spectral.metrics import adjusted_rand_index
        >>> adjusted_rand_index(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))
        1.0
    """
    return _mean(adjusted_rand_score(found, truth) for found, truth in _pairs(prediction, truths))


def variation_of_information(prediction: Labels, truths: Labels | Sequence[Labels]) -> float:
    """Return the variation of information H(P | T) + H(T | P) between two partitions, in bits.

    Bits are the unit of the BSDS500 benchmark's own code; multiply by log 2 for nats.

    Args:
        prediction: Segment of each pixel, non-negative integers.
        truths: One label map of the same shape, or one map per annotator; the distance is averaged over them.

    Returns:
        A distance from 0 to log2 of the number of pixels; 0 means identical partitions.

    Reference:
        Meila, Comparing clusterings, Journal of Multivariate Analysis 2007.

    Example:
        >>> import numpy as np
        >>> from hf_spectral.metrics import variation_of_information
        >>> variation_of_information(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1]))
        1.0
    """

    def distance(table: np.ndarray) -> float:
        joint, segments, regions = (entropy(counts, base=2) for counts in (table.ravel(), table.sum(1), table.sum(0)))
        return max(0.0, 2 * joint - segments - regions)

    return _mean(map(distance, _tables(prediction, truths)))


def normalized_mutual_information(
    prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None
) -> float:
    """Return the mutual information of two partitions divided by the mean of their entropies.

    Args:
        prediction: Segment of each pixel, non-negative integers.
        truths: One label map of the same shape, or one map per annotator; the score is averaged over them.
        void: Truth label of the pixels to leave out, if any.

    Returns:
        A score from 0 to 1. It is 1 for identical partitions (also if both have one segment) and 0 for independent
        labels.

    Reference:
        Strehl, Ghosh, Cluster ensembles, JMLR 2002; `sklearn.metrics.normalized_mutual_info_score`.

    Example:
        >>> import numpy as np
        >>> from hf_spectral.metrics import normalized_mutual_information
        >>> normalized_mutual_information(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
        0.0
    """
    scores = [normalized_mutual_info_score(truth, found) for found, truth in _pairs(prediction, truths, void)]
    return _mean(min(1.0, score) for score in scores)  # Rounding can exceed 1.


def matched_miou(prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None) -> float:
    """Return the mean intersection over union of the classes, after the best one-to-one matching with clusters.

    A class without a cluster scores 0. To score a dataset, concatenate the labels of all images first.

    Args:
        prediction: Cluster of each pixel, non-negative integers.
        truths: Class of each pixel, of the same shape, or several such maps; the score is averaged over them.
        void: Class of the pixels to leave out, if any.

    Returns:
        A score from 0 to 1. It is 1 if clusters and classes are identical, and near 0 if no cluster resembles a class.

    Reference:
        Ji, Henriques, Vedaldi, Invariant Information Clustering, ICCV 2019 (matching by Kuhn, 1955).

    Example:
        >>> import numpy as np
        >>> from hf_spectral.metrics import matched_miou
        >>> matched_miou(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1]))
        0.75
    """
    overlaps = map(_overlaps, _tables(prediction, truths, void))
    return _mean(_matched(overlap).sum() / overlap.shape[1] for overlap in overlaps)


def matched_accuracy(prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None) -> float:
    """Return the share of pixels whose class is the one matched with their cluster, after the best one-to-one matching.

    The matching maximizes this share; pixels of a cluster without a class count as wrong. Frequent classes weigh more
    than rare ones; `matched_miou` gives all classes the same weight.

    Args:
        prediction: Cluster of each pixel, non-negative integers.
        truths: Class of each pixel, of the same shape, or several such maps; the score is averaged over them.
        void: Class of the pixels to leave out, if any.

    Returns:
        A score from 0 to 1. It is 1 if clusters and classes are identical.

    Reference:
        Ji, Henriques, Vedaldi, Invariant Information Clustering, ICCV 2019 (matching by Kuhn, 1955).

    Example:
        >>> import numpy as np
        >>> from hf_spectral.metrics import matched_accuracy
        >>> matched_accuracy(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1]))
        0.75
    """
    return _mean(_matched(table).sum() / table.sum() for table in _tables(prediction, truths, void))


def majority_miou(prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None) -> float:
    """Return the mean intersection over union of the classes, after assigning each cluster its most frequent class.

    Several clusters may be assigned to one class, so the score rises with the number of clusters: compare only results
    with the same number, and report `matched_miou` as well. A class that is assigned to no cluster scores 0.

    Args:
        prediction: Cluster of each pixel, non-negative integers.
        truths: Class of each pixel, of the same shape, or several such maps; the score is averaged over them.
        void: Class of the pixels to leave out, if any.

    Returns:
        A score from 0 to 1. It is 1 if every cluster lies inside one class.

    Reference:
        Van Gansbeke, Vandenhende, Georgoulis, Van Gool, Unsupervised Semantic Segmentation by Contrasting Object Mask
        Proposals, ICCV 2021 (evaluation of overclustering).

    Example:
        >>> import numpy as np
        >>> from hf_spectral.metrics import majority_miou
        >>> majority_miou(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1]))
        1.0
    """

    def score(table: np.ndarray) -> float:
        votes = np.eye(table.shape[1], dtype=table.dtype)[table.argmax(1)]
        return _overlaps(votes.T @ table).diagonal().mean()

    return _mean(map(score, _tables(prediction, truths, void)))


def purity(prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None) -> float:
    """Return the share of pixels that belong to the most frequent class of their cluster.

    Purity rises with the number of clusters: compare only results with the same number.

    Args:
        prediction: Cluster of each pixel, non-negative integers.
        truths: Class of each pixel, of the same shape, or several such maps; the score is averaged over them.
        void: Class of the pixels to leave out, if any.

    Returns:
        A score above 0, at most 1. It is 1 if no cluster mixes classes.

    Reference:
        Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 2008, section 16.3.

    Example:
        >>> import numpy as np
        >>> from hf_spectral.metrics import purity
        >>> purity(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
        0.75
    """
    return _mean(table.max(1).sum() / table.sum() for table in _tables(prediction, truths, void))


def _mean(scores: Iterable[float]) -> float:
    return float(np.mean(list(scores)))


def _tables(
    prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None
) -> Iterator[Integer[np.ndarray, "segments regions"]]:
    """Yield for each truth the number of pixels that each segment and each region share."""
    return (contingency_matrix(found, truth) for found, truth in _pairs(prediction, truths, void))


def _pairs(
    prediction: Labels, truths: Labels | Sequence[Labels], void: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each truth the predicted and the true labels of the pixels that count, as flat arrays."""
    several = [truths] if isinstance(truths, Tensor | np.ndarray | Image.Image) else list(truths)
    if not several:
        raise SpectralError("truths", expected="at least one label map", got="none", fix="Pass one map per annotator")
    found = _integers("prediction", prediction)
    for truth in several:
        wanted = _integers("truths", truth)
        if found.shape != wanted.shape:
            raise SpectralError(
                "truths",
                expected=f"the shape of the prediction, {found.shape}",
                got=wanted.shape,
                fix="Segment with size=(height, width) of the label map",
            )
        counts = np.full(wanted.shape, True) if void is None else wanted != void
        if not counts.any():
            raise SpectralError(
                "truths", expected="at least one labelled pixel", got="none", fix="Leave this image out"
            )
        yield found[counts], wanted[counts]


def _integers(argument: str, labels: Labels) -> np.ndarray:
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.dtype.kind not in "iu" or (values.size and values.min() < 0):
        raise SpectralError(
            argument,
            expected="integers from 0",
            got=f"{values.dtype} labels",
            fix="Map void to a number and pass `void`",
        )
    return values


def _overlaps(table: Integer[np.ndarray, "segments regions"]) -> Float[np.ndarray, "segments regions"]:
    """Return the intersection over union of each segment with each region."""
    return table / (table.sum(1, keepdims=True) + table.sum(0) - table)


def _matched(table: np.ndarray) -> np.ndarray:
    """Return the values of the pairs of the one-to-one matching with the largest sum."""
    return table[linear_sum_assignment(table, maximize=True)]
