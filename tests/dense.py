"""The matrices that the package never writes out, in plain numpy and float64: what its results are compared with."""

import numpy as np
import scipy.linalg

from hf_spectral.affinities import Attention, Cosine, Exponential
from hf_spectral.grid import area_pooling, finest


def dense_normalized_affinity(record, config):
    """The normalized affinity of one layer, written out plainly in float64 with numpy."""
    query, key, value = (part[0].double().numpy() for part in (record.query, record.key, record.value))
    if config.affinity == Attention():
        logits = record.scale * query @ key.transpose(0, 2, 1)
        attention = np.exp(logits - logits.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        per_head = (attention + attention.transpose(0, 2, 1)) / 2
        affinities = [per_head.mean(0)] if config.heads == "merged" else list(per_head)
    else:
        pairs = [value, value] if config.pathway == "what" else [query, key]
        if config.heads == "merged":
            pairs = [part.transpose(1, 0, 2).reshape(1, part.shape[1], -1) for part in pairs]
        left, right = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in pairs)
        cosines = left @ right.transpose(0, 2, 1)
        affinities = [_kernel((cosine + cosine.T) / 2, config) for cosine in cosines]
    return np.mean([_normalized(affinity) for affinity in affinities], axis=0)


def _kernel(cosine, config):
    if isinstance(config.affinity, Exponential):
        return np.exp((cosine - 1) / (config.affinity.temperature or 0.35 * max(cosine.std(), 0.08)))
    if config.affinity == Cosine():
        return (1 + cosine) / 2
    graph = np.zeros_like(cosine)
    for i, row in enumerate(cosine):
        others = np.delete(np.argsort(-row), np.flatnonzero(np.argsort(-row) == i))[: config.affinity.num_neighbors]
        graph[i, others] = np.where(row[others] > config.affinity.threshold, row[others], 0)
    return (graph + graph.T) / 2


def _normalized(affinity):
    degree = affinity.sum(1)
    root = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    return root[:, None] * affinity * root


def cosine_affinity(left, right, pathway):
    """(1 + cosine) / 2 between the tokens of two records, heads merged, in float64."""

    def unit(tokens):
        tokens = tokens[0].double().numpy().transpose(1, 0, 2).reshape(tokens.shape[2], -1)
        return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)

    if pathway == "what":
        return (1 + unit(left.value) @ unit(right.value).T) / 2
    cosine = (unit(left.query) @ unit(right.key).T + unit(left.key) @ unit(right.query).T) / 2
    return (1 + cosine) / 2


def pooling(image, layer):
    common = finest([record.grid for record in image])
    grid = image[layer].grid
    return np.kron(area_pooling(common.height, grid.height), area_pooling(common.width, grid.width))


def dense_joint(images, pathway, weights=None):
    """A and B of the whole dataset, and each layer's affinity, formed entry by entry."""
    affinity, mass = 0, 0
    for layer in range(len(images[0])):
        weight = 1 / len(images[0]) if weights is None else weights[layer]
        full = np.block([[cosine_affinity(one[layer], two[layer], pathway) for two in images] for one in images])
        degree = full.sum(1)
        pool = scipy.linalg.block_diag(*[pooling(image, layer) for image in images])
        affinity = affinity + weight * pool.T @ (full / np.sqrt(np.outer(degree, degree))) @ pool
        mass = mass + weight * pool.T @ pool
    return affinity, mass


def rows_of(basis, images, walk=0.0):
    return np.concatenate([basis.project(one, walk).eigenvectors.flatten(1).T.double().numpy() for one in images])
