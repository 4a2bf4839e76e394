"""Every family: outputs unchanged, records in raster order, equal to the model's own projections."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import ViTForImageClassification, ViTMAEForPreTraining

from hf_spectral.capture import capture_attention, vision_tower
from tests.families.tiny_backbones import (
    BACKBONES,
    Tiny,
    build_clip,
    build_siglip2_vision,
    build_vit_mae,
    naflex_inputs,
)

# Levels from the attention module up to its block, the block's norm before attention, the projections.
SPLIT = ("q_proj", "k_proj", "v_proj")
PLACES = {
    "vit": (1, "layernorm_before", SPLIT),
    "deit": (1, "layernorm_before", SPLIT),
    "dinov2": (1, "norm1", SPLIT),
    "dinov2_with_registers": (1, "norm1", SPLIT),
    "dinov3_vit": (1, "norm1", SPLIT),
    "clip_vision": (1, "layer_norm1", SPLIT),
    "siglip_vision": (1, "layer_norm1", SPLIT),
    "beit": (1, "layernorm_before", SPLIT),
    "data2vec_vision": (2, "layernorm_before", ("query", "key", "value")),
    "ijepa": (1, "layernorm_before", SPLIT),
    "swin": (1, "layernorm_before", SPLIT),
    "swinv2": (2, None, ("query", "key", "value")),
    "hiera": (1, "layernorm_before", ("qkv",)),
    "sam_vision": (1, "layer_norm1", ("qkv",)),
}


def snapshot(model):
    """Return everything of a model that a capture could leave behind."""
    return {
        "configs": {
            name: (module.config._attn_implementation_internal, copy.deepcopy(module.config.to_dict()))
            for name, module in model.named_modules()
            if hasattr(module, "config")
        },
        "hooks": {
            name: (list(module._forward_hooks), list(module._forward_pre_hooks))
            for name, module in model.named_modules()
        },
        "training": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: {k: id(v) for k, v in vars(module).items()} for name, module in model.named_modules()},
    }


def run(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)[0]


def split_heads(tokens, record):
    """Bring raster tokens (images, nodes, channels) into a record's form."""
    return tokens.unflatten(-1, (record.query.shape[1], -1)).transpose(1, 2)


def block_inputs(model, depth, records, forward):
    """Return the hidden state that enters the block of each record, as the model keeps it between blocks."""
    seen, handles = {}, []
    for record in records:
        path = ".".join(record.name.split(".")[:-depth])
        hook = lambda module, args, name=record.name: seen.__setitem__(name, args[0])  # noqa: E731
        handles.append(model.get_submodule(path).register_forward_pre_hook(hook))
    forward()
    for handle in handles:
        handle.remove()
    return seen


def projections(model, record, norm, names, depth, hidden):
    block = model.get_submodule(".".join(record.name.split(".")[:-depth]))
    attention = model.get_submodule(record.name)
    with torch.no_grad():
        normalized = getattr(block, norm)(hidden) if norm else hidden
        if names == ("qkv",):
            return attention.qkv(normalized).chunk(3, dim=-1)
        return tuple(getattr(attention, name)(normalized) for name in names)


@pytest.mark.parametrize("family", BACKBONES)
def test_capture_changes_nothing_and_finds_every_layer(family):
    tiny = BACKBONES[family]
    model, images = tiny.model(), tiny.images()
    before, expected = snapshot(model), run(model, images, **tiny.forward)

    with capture_attention(model) as capture:
        output = run(model, images, **tiny.forward)

    assert torch.isfinite(expected).all()
    assert (output - expected).abs().max() == 0.0
    assert snapshot(model) == before
    assert [(record.grid.height, record.grid.width) for record in capture] == list(tiny.grids)
    assert {record.grid.num_prefix for record in capture} == {tiny.num_prefix}
    assert [record.windowed for record in capture] == list(tiny.windowed)[: len(tiny.grids)]
    assert len(capture.skipped) == tiny.num_skipped
    for record in capture:
        assert record.query.shape == record.key.shape == record.value.shape
        assert record.query.shape[0] == len(images)
        assert record.query.dtype == torch.float32
        assert not record.query.requires_grad


@pytest.mark.parametrize("family", BACKBONES)
def test_records_equal_the_projections_of_the_raster_hidden_state(family):
    tiny = BACKBONES[family]
    model, images = tiny.model(), tiny.images()
    depth, norm, names = PLACES[family]
    with capture_attention(model) as capture:
        run(model, images, **tiny.forward)
    hidden = block_inputs(model, depth, capture, lambda: run(model, images, **tiny.forward))

    for record in capture:
        tokens = hidden[record.name]
        if family == "hiera":
            stage = int(record.name.split(".")[2])
            tokens = model.encoder.reroll(tokens, stage_idx=stage)
        if tokens.ndim == 4:
            tokens = tokens.flatten(1, 2)
        query, key, value = (
            split_heads(tokens[:, tiny.num_prefix :], record)
            for tokens in projections(model, record, norm, names, depth, tokens)
        )
        torch.testing.assert_close(record.value, value, atol=1e-5, rtol=1e-5)
        if family == "dinov3_vit":
            assert not torch.allclose(record.query, query, atol=1e-3)  # rotated
            torch.testing.assert_close(record.query.norm(dim=-1), query.norm(dim=-1), atol=1e-4, rtol=1e-4)
            continue
        if family == "swinv2":
            logits = model.get_submodule(record.name).logit_scale.detach().clamp(max=4.605170185988092).exp()
            query, key = F.normalize(query, dim=-1) * logits, F.normalize(key, dim=-1)
            assert record.scale == 1.0
        else:
            assert record.scale == pytest.approx(record.query.shape[-1] ** -0.5)
        torch.testing.assert_close(record.query, query, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(record.key, key, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_changed_patch_moves_its_own_node_only(family):
    tiny = BACKBONES[family]
    model, images = tiny.model(), tiny.images(count=1)
    height, width = tiny.grids[0]
    size = 4 if family in ("swin", "swinv2", "hiera") else 8
    row, column = height - 2, 2
    changed = images.clone()
    changed[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size] += 1.0

    with capture_attention(model, layers=[0]) as capture:
        run(model, images, **tiny.forward)
        run(model, changed, **tiny.forward)

    first, second = capture
    moved = (first.value - second.value).abs().amax(dim=(0, 1, 3)).reshape(height, width) > 1e-4
    # Hiera's patches overlap their neighbors.
    reach = 1 if family == "hiera" else 0
    assert moved[row, column]
    moved[row - reach : row + reach + 1, column - reach : column + reach + 1] = False
    assert not moved.any()


def test_skipped_layers_count_in_the_index():
    tiny = BACKBONES["hiera"]
    model = tiny.model()
    with capture_attention(model) as capture:
        run(model, tiny.images())

    assert [record.index for record in capture] == [0, 1, 3, 5]
    assert [skipped.name for skipped in capture.skipped] == [
        "encoder.stages.1.layers.0.attn",
        "encoder.stages.2.layers.0.attn",
    ]
    assert "pools its queries" in capture.skipped[0].reason


@pytest.mark.parametrize("family", ["data2vec_vision", "sam_vision"])
def test_projection_hooks_see_what_the_tap_sees(family):
    tiny = BACKBONES[family]
    tapped, images = tiny.model(), tiny.images()
    config = copy.deepcopy(tapped.config)
    config._attn_implementation = "eager"
    eager = type(tapped)(config).eval()
    eager.load_state_dict(tapped.state_dict())
    expected = run(eager, images)

    with capture_attention(tapped) as by_tap:
        run(tapped, images)
    with capture_attention(eager) as by_hooks:
        output = run(eager, images)

    assert (output - expected).abs().max() == 0.0
    assert {type(m).__name__ for m in tapped.modules()} != {type(m).__name__ for m in eager.modules()}
    assert len(by_tap) == len(by_hooks) == 3
    for one, other in zip(by_tap, by_hooks, strict=True):
        torch.testing.assert_close(one.query, other.query, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.key, other.key, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.value, other.value, atol=1e-4, rtol=1e-4)
        assert one.scale == pytest.approx(other.scale)


def test_naflex_drops_padding_and_equals_an_unpadded_image():
    model = Tiny(build_siglip2_vision, (0, 0), ()).model()
    inputs = naflex_inputs(grid=(6, 4), padding=5)
    before, expected = snapshot(model), run(model, **inputs)

    with capture_attention(model) as capture:
        output = run(model, **inputs)
    with capture_attention(model) as unpadded:
        run(model, **naflex_inputs(grid=(6, 4), padding=0))

    assert (output - expected).abs().max() == 0.0
    assert snapshot(model) == before
    assert [(record.grid.height, record.grid.width, record.grid.num_prefix) for record in capture] == [(6, 4, 0)] * 3
    assert capture.skipped == []
    for padded, plain in zip(capture, unpadded, strict=True):
        torch.testing.assert_close(padded.query, plain.query, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(padded.value, plain.value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [build_vit_mae, lambda: ViTMAEForPreTraining(build_vit_mae().config)])
def test_masked_autoencoder_shows_all_patches_in_order(build):
    tiny = Tiny(build, (64, 48), ())
    model, images = tiny.model(), tiny.images()
    tower = vision_tower(model)
    ordered = torch.arange(48.0).expand(2, -1)
    before = snapshot(model)
    model.config.mask_ratio = 0.0
    expected = run(tower, images, noise=ordered, interpolate_pos_encoding=True)
    model.config.mask_ratio = 0.75

    with capture_attention(model) as capture:
        output = run(tower, images, interpolate_pos_encoding=True)
        assert model.config.mask_ratio == 0.75

    assert (output - expected).abs().max() == 0.0
    assert snapshot(model) == before
    assert [(record.grid.height, record.grid.width, record.grid.num_prefix) for record in capture] == [(8, 6, 1)] * 3
    assert run(tower, images, interpolate_pos_encoding=True).shape[1] == 1 + 12
    hidden = block_inputs(model, 1, capture, lambda: run_unmasked(model, tower, images, ordered))
    for record in capture:
        _, _, value = projections(model, record, "layernorm_before", SPLIT, 1, hidden[record.name])
        torch.testing.assert_close(record.value, split_heads(value[:, 1:], record), atol=1e-5, rtol=1e-5)


def run_unmasked(model, tower, images, noise):
    model.config.mask_ratio = 0.0
    run(tower, images, noise=noise, interpolate_pos_encoding=True)
    model.config.mask_ratio = 0.75


def test_a_whole_clip_records_its_vision_tower_only():
    tiny = Tiny(build_clip, (64, 64), ())
    model, images = tiny.model(), tiny.images()
    inputs = {"pixel_values": images, "input_ids": torch.tensor([[1, 2, 49]] * 2)}
    before, expected = snapshot(model), run(model, **inputs)

    with capture_attention(model) as capture:
        assert model.text_model.config._attn_implementation == "sdpa"
        output = run(model, **inputs)
    with capture_attention(model.vision_model) as tower_only:
        run(model.vision_model, images)
    with capture_attention(model) as by_features, torch.no_grad():
        model.get_image_features(images)

    assert vision_tower(model) is model.vision_model
    assert (output - expected).abs().max() == 0.0
    assert snapshot(model) == before
    assert [record.name for record in capture] == [
        f"vision_model.encoder.layers.{index}.self_attn" for index in range(3)
    ]
    assert capture.skipped == []
    for whole, tower, features in zip(capture, tower_only, by_features, strict=True):
        assert torch.equal(whole.query, tower.query)
        assert torch.equal(whole.value, features.value)


def test_a_classifier_is_its_own_way_to_the_tower():
    tiny = Tiny(lambda: ViTForImageClassification(BACKBONES["vit"].model().config), (64, 48), ())
    model = tiny.model()
    with capture_attention(model) as capture:
        run(model, tiny.images(), interpolate_pos_encoding=True)

    assert vision_tower(model) is model.vit
    assert [record.name for record in capture] == [f"vit.layers.{index}.attention" for index in range(3)]


@pytest.mark.parametrize("family", ["vit", "dinov3_vit", "beit", "swin"])
def test_eager_attention_stays_eager(family):
    tiny = BACKBONES[family]
    model, images = tiny.model(), tiny.images()
    with capture_attention(model) as by_sdpa:
        run(model, images, **tiny.forward)
    model.set_attn_implementation("eager")
    before = snapshot(model)
    with torch.no_grad():
        expected = model(images, output_attentions=True, **tiny.forward)
        with capture_attention(model) as capture:
            output = model(images, output_attentions=True, **tiny.forward)

    assert (output[0] - expected[0]).abs().max() == 0.0
    assert len(output.attentions) == len(expected.attentions) > 0
    assert all(torch.equal(one, other) for one, other in zip(output.attentions, expected.attentions, strict=True))
    assert snapshot(model)["configs"] == before["configs"]
    torch.testing.assert_close(capture.records[-1].value, by_sdpa.records[-1].value, atol=1e-3, rtol=1e-3)
