"""Every tower of `tiny_towers`: unchanged by capture, read in raster order, in its own proportions or with a note."""

import pytest
import torch

from hf_spectral.capture import vision_tower
from hf_spectral.families.transformers import is_known
from tests.families.proofs import assert_follows_the_quarter, assert_unchanged_by_capture, randomized
from tests.families.tiny_towers import TOWERS


def built(name):
    build, processor, pathways = TOWERS[name]
    torch.manual_seed(0)
    return randomized(build()), processor, pathways


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_read_in_raster_order_and_unchanged(name):
    model, processor, pathways = built(name)
    assert is_known(vision_tower(model))
    capture = assert_unchanged_by_capture(model, processor)
    served = {pathway for pathway in ("what", "where") if any(one.refusal(pathway) is None for one in capture)}
    assert served == set(pathways)
    output = assert_follows_the_quarter(model, processor)
    assert len(output["layers"]) == len(capture)
