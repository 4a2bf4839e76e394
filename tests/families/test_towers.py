"""Every tower of `tiny_towers`: unchanged by capture, read in raster order, in its own proportions or with a note."""

import pytest
import torch
import transformers as hf

import hf_spectral
from hf_spectral.capture import vision_tower
from hf_spectral.families.transformers import family_of, is_known
from tests.families.proofs import (
    assert_a_changed_patch_moves_its_node,
    assert_follows_the_quarter,
    assert_layers_attend_as_recorded,
    assert_unchanged_by_capture,
    quarter_picture,
    randomized,
)
from tests.families.tiny_towers import TOWERS, VIT


def built(name):
    build, processor, pathways = TOWERS[name]
    torch.manual_seed(0)
    return randomized(build()), processor, pathways


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_read_in_raster_order_and_unchanged(name, monkeypatch):
    model, processor, pathways = built(name)
    assert is_known(vision_tower(model))
    capture = assert_unchanged_by_capture(model, processor)
    served = {pathway for pathway in ("what", "where") if any(one.refusal(pathway) is None for one in capture)}
    assert served == set(pathways)
    output = assert_follows_the_quarter(model, processor)
    assert len(output["layers"]) == len(capture)
    assert_layers_attend_as_recorded(model, processor, monkeypatch)


@pytest.mark.parametrize("name", ["pixtral", "qwen2_5_vl", "qwen3_vl", "gemma4", "videomae", "rf_detr", "sam2", "eomt"])
def test_a_batch_gives_what_its_pictures_give_alone(name):
    model, processor, _ = built(name)
    pipe = hf_spectral.pipeline(model, image_processor=processor, device="cpu")
    prepared = [pipe.preprocess(picture) for picture in (quarter_picture(), quarter_picture().rotate(180))]
    together, alone = [], []
    pipe.records(prepared, together.append)
    for one in prepared:
        pipe.records([one], alone.append)
    assert 2 * len(together) == len(alone) > 0
    for index, record in enumerate(together):
        for position in range(2):
            single = alone[position * len(together) + index]
            assert record.image(position).grid == single.grid
            torch.testing.assert_close(record.image(position).value, single.value, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(record.image(position).query, single.query, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_patches_are_cut_as_the_host_cuts_them(name):
    model, processor, _ = built(name)
    tower, picture = vision_tower(model), quarter_picture()
    config = tower.config
    made = family_of(tower).to_inputs(tower, processor, picture, (64, 96))
    sizes = {"patch_size": config.patch_size, "merge_size": config.spatial_merge_size}
    sizes["temporal_patch_size"] = config.temporal_patch_size
    resized = picture.resize((96, 64), processor.resample)
    expected = processor(images=resized, do_resize=False, return_tensors="pt", **sizes)
    torch.testing.assert_close(made["hidden_states"], expected["pixel_values"], atol=1e-5, rtol=1e-5)
    assert made["grid_thw"].tolist() == expected["image_grid_thw"].tolist()


LIKE_CLIP = ("AltCLIPVision", "ChineseCLIPVision", "CLIPSegVision", "GitVision", "Kosmos2Vision", "MetaClip2Vision")


@pytest.mark.parametrize("name", LIKE_CLIP)
def test_towers_like_clip_are_read_in_raster_order(name):
    config = getattr(hf, f"{name}Config", None) or hf.models.kosmos2.configuration_kosmos2.Kosmos2VisionConfig
    torch.manual_seed(0)
    model = randomized(
        getattr(hf, f"{name}Model", hf.models.kosmos2.modeling_kosmos2.Kosmos2VisionModel)(config(**VIT))
    )
    assert is_known(model)
    assert_a_changed_patch_moves_its_node(model, torch.randn(1, 3, 64, 48), {"interpolate_pos_encoding": True})


def test_windows_one_after_the_other_are_put_back_on_a_map_that_is_no_square():
    model, _, _ = built("lw_detr")
    model.encoder.layer[1].window = True
    capture = assert_a_changed_patch_moves_its_node(model, torch.randn(1, 3, 64, 48), {})
    assert [record.windowed for record in capture] == [False, True, False]
