"""Scores of segmentations against ground truth, and of eigenvectors by position, image and identity."""

from hf_spectral.metrics.partitions import (
    adjusted_rand_index,
    covering,
    majority_miou,
    matched_accuracy,
    matched_miou,
    normalized_mutual_information,
    purity,
    variation_of_information,
)
from hf_spectral.metrics.pathways import (
    VarianceShares,
    image_score,
    layout_score,
    surrounding_clusters,
    surroundings,
    what_score,
    where_score,
)

__all__ = [
    "VarianceShares",
    "adjusted_rand_index",
    "covering",
    "image_score",
    "layout_score",
    "majority_miou",
    "matched_accuracy",
    "matched_miou",
    "normalized_mutual_information",
    "purity",
    "surrounding_clusters",
    "surroundings",
    "variation_of_information",
    "what_score",
    "where_score",
]
