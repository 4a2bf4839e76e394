import numpy as np
import pytest
import torch

from hf_spectral.errors import SpectralError
from hf_spectral.metrics import adjusted_rand_index
from hf_spectral.segmentation import semantic_segmentation


def planted(shapes=((8, 10), (10, 6), (7, 7)), classes=4, noise=0.1):
    """Maps whose rows point in the direction of their class, with any length; the first channel is void of meaning."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:classes]
    labels = [torch.randint(classes, shape, generator=generator) for shape in shapes]
    maps = []
    for one in labels:
        rows = directions[one] + noise * torch.randn(*one.shape, 6, generator=generator)
        lengths = 0.01 + torch.rand(*one.shape, 1, generator=generator)
        maps.append(
            torch.cat([100 * torch.randn(1, *one.shape, generator=generator), (lengths * rows).permute(2, 0, 1)])
        )
    return maps, labels


def flat(labels):
    return torch.cat([one.flatten() for one in labels])


def test_classes_mean_the_same_in_every_image():
    maps, labels = planted()
    found = semantic_segmentation(maps, 4)
    assert [one.shape for one in found] == [one.shape for one in labels]
    assert adjusted_rand_index(flat(found), flat(labels)) > 0.98


def test_sizes_give_labels_of_pixels():
    maps, labels = planted()
    halves = [torch.arange(one.shape[1]).expand(one.shape) * 2 // one.shape[1] for one in labels]
    maps = [torch.stack([torch.ones(half.shape), half.float(), 1.0 - half]) for half in halves]
    found = semantic_segmentation(maps, 2, [(30, 40), (41, 20), (5, 5)])
    assert [tuple(one.shape) for one in found] == [(30, 40), (41, 20), (5, 5)]
    for one in found:
        assert (one == one[:1]).all()
        assert one[0, 0] == found[0][0, 0] != one[0, -1]
    assert abs(int(np.flatnonzero(np.diff(found[0][0].numpy()))[0]) - 19) <= 1


def test_deterministic():
    maps, _ = planted(noise=1.0)
    one, two, other = (flat(semantic_segmentation(maps, 4, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_messages():
    maps, _ = planted()
    with pytest.raises(SpectralError, match="`num_segments`: expected at most the 189 tokens that differ, got 200"):
        semantic_segmentation(maps, 200)
    with pytest.raises(SpectralError, match="`num_segments`: expected at most the 1 tokens that differ, got 2"):
        semantic_segmentation([torch.ones(3, 4, 4)] * 2, 2)
    with pytest.raises(SpectralError, match="at least one image"):
        semantic_segmentation([], 2)
    with pytest.raises(SpectralError, match="the same number of eigenvectors, at least 2, got 1 images"):
        semantic_segmentation([torch.ones(1, 4, 4)], 2)
    with pytest.raises(SpectralError, match="`sizes`: expected one for each of 3 images, got 1"):
        semantic_segmentation(maps, 4, [(8, 8)])
    with pytest.raises(SpectralError, match="finite values"):
        semantic_segmentation([torch.full((3, 4, 4), torch.nan)], 2)
