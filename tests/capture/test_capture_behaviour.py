"""What a capture promises besides the records: threads, exceptions, nesting, choice of layers, numbers."""

import contextlib
import copy
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from hf_spectral.capture import capture_attention
from hf_spectral.capture.base import Recorder
from hf_spectral.capture.sdpa import AttentionTap
from hf_spectral.capture.transformers import arrange
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.families.attention_call import AttentionCall
from hf_spectral.families.transformers import TowerCall, base
from hf_spectral.families.transformers.windows import unwindow
from hf_spectral.grid import TokenGrid
from hf_spectral.records import AttentionRecord, SkippedLayer
from tests.families.tiny_backbones import (
    BACKBONES,
    Tiny,
    build_clip,
    build_dinov2,
    build_siglip2_vision,
    build_vit_mae,
    naflex_inputs,
)

DINOV2 = BACKBONES["dinov2"]


def run(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)[0]


def num_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def is_clean(model):
    return num_hooks(model) == 0 and model.config._attn_implementation in ("sdpa", "eager")


def test_on_record_receives_each_layer_while_the_model_runs_and_stores_none():
    model, images = DINOV2.model(), DINOV2.images()
    events = []
    last = model.encoder.layer[1].mlp.register_forward_hook(lambda *_: events.append("second layer left"))

    with capture_attention(model, on_record=lambda record: events.append(record.index)) as capture:
        run(model, images)
    last.remove()

    assert events == [0, 1, "second layer left", 2]
    assert capture.records == []


@pytest.mark.parametrize(("layers", "indices"), [([-1], [2]), ([0, 2], [0, 2]), ((1, -2), [1]), (range(3), [0, 1, 2])])
def test_layers_are_chosen_by_index(layers, indices):
    model = DINOV2.model()
    with capture_attention(model, layers=layers) as capture:
        run(model, DINOV2.images())

    assert [record.index for record in capture] == indices
    assert [record.name for record in capture] == [f"encoder.layer.{index}.attention" for index in indices]


@pytest.mark.parametrize("layers", [[3], [-4], [], [True]])
def test_layers_outside_the_model_are_refused(layers):
    model = DINOV2.model()
    with (
        pytest.raises(
            SpectralError, match="`layers`: expected indices from -3 to 2 for 3 attention layers, at least one"
        ),
        capture_attention(model, layers=layers),
    ):
        pass
    assert is_clean(model)


def test_indices_start_again_with_every_forward():
    model = DINOV2.model()
    with capture_attention(model) as capture:
        run(model, DINOV2.images(seed=1))
        run(model, DINOV2.images(seed=2))

    assert [record.index for record in capture] == [0, 1, 2, 0, 1, 2]
    assert not torch.equal(capture.records[0].query, capture.records[3].query)


def test_a_block_without_forward_is_empty():
    with capture_attention(DINOV2.model()) as capture:
        pass
    assert len(capture) == 0
    assert capture.skipped == []


@pytest.mark.parametrize("family", ["dinov2", "sam_vision", "swinv2"])
def test_an_exception_in_the_block_leaves_the_model_clean(family):
    tiny = BACKBONES[family]
    model, images = tiny.model(), tiny.images()
    expected = run(model, images, **tiny.forward)

    def leave_by_exception():
        with capture_attention(model):
            run(model, images, **tiny.forward)
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        leave_by_exception()

    assert is_clean(model)
    assert torch.equal(run(model, images, **tiny.forward), expected)


def test_an_exception_in_a_layer_leaves_the_model_clean_and_the_next_forward_whole():
    model, images = DINOV2.model(), DINOV2.images()
    broken = model.encoder.layer[1].mlp
    handle = broken.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken layer")))
    with capture_attention(model) as capture:
        with pytest.raises(RuntimeError, match="broken layer"):
            run(model, images)
        handle.remove()
        partial = len(capture)
        run(model, images)

    assert partial == 2
    assert [record.index for record in capture] == [0, 1, 0, 1, 2]
    assert is_clean(model)


def test_an_exception_inside_an_attention_layer_gives_no_record():
    model, images = DINOV2.model(), DINOV2.images()
    projection = model.encoder.layer[0].attention.o_proj
    handle = projection.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken projection")))
    with capture_attention(model) as capture, pytest.raises(RuntimeError, match="broken projection"):
        run(model, images)
    handle.remove()

    assert capture.records == []
    assert is_clean(model)


def test_a_failing_on_record_reaches_the_caller():
    model = DINOV2.model()

    def fail(record):
        raise LookupError(f"layer {record.index}")

    with pytest.raises(LookupError, match="layer 0"), capture_attention(model, on_record=fail):
        run(model, DINOV2.images())
    assert is_clean(model)


def test_nested_capture_of_one_model_is_refused_and_of_another_is_not():
    model, other = DINOV2.model(), BACKBONES["vit"].model()
    with capture_attention(model) as outer:
        with (
            pytest.raises(SpectralError, match=r"`model`: expected a model that this thread does not capture already"),
            capture_attention(model),
        ):
            pass
        with capture_attention(other) as inner:
            run(other, BACKBONES["vit"].images(), interpolate_pos_encoding=True)
            run(model, DINOV2.images())

    assert [record.name for record in outer] == [f"encoder.layer.{index}.attention" for index in range(3)]
    assert [record.name for record in inner] == [f"layers.{index}.attention" for index in range(3)]
    assert is_clean(model)
    assert is_clean(other)


@pytest.mark.parametrize("family", ["dinov2", "data2vec_vision", "swinv2"])
def test_threads_share_a_model(family):
    tiny = BACKBONES[family]
    model = tiny.model()
    batches = [tiny.images(seed=seed) for seed in range(4)]
    expected_output = [run(model, images, **tiny.forward) for images in batches]
    expected = []
    for images in batches:
        with capture_attention(model) as capture:
            run(model, images, **tiny.forward)
        expected.append(capture.records)
    barrier = threading.Barrier(4)

    def work(position):
        barrier.wait()
        for _ in range(5):
            if position == 3:  # this thread only uses the model
                assert torch.equal(run(model, batches[3], **tiny.forward), expected_output[3])
                continue
            with capture_attention(model) as capture:
                assert torch.equal(run(model, batches[position], **tiny.forward), expected_output[position])
            assert len(capture) == len(expected[position])
            for one, other in zip(capture, expected[position], strict=True):
                assert torch.equal(one.query, other.query)
                assert torch.equal(one.value, other.value)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))  # Raises what a thread has raised.
    assert is_clean(model)


def test_another_thread_keeps_its_mask_ratio():
    tiny = Tiny(build_vit_mae, (64, 64), ())
    model, images = tiny.model(), tiny.images()
    shapes = []
    with capture_attention(model) as capture:
        thread = threading.Thread(target=lambda: shapes.append(run(model, images).shape[1]))
        thread.start()
        thread.join()
        shapes.append(run(model, images).shape[1])

    assert shapes == [1 + 16, 1 + 64]
    assert len(capture) == 3
    assert run(model, images).shape[1] == 1 + 16


def test_a_model_copied_inside_the_block_is_a_plain_one():
    tiny = Tiny(build_vit_mae, (64, 64), ())
    model = tiny.model()
    with capture_attention(model):
        twin = copy.deepcopy(model)

    assert type(twin.embeddings.config) is type(model.config)
    assert run(twin, tiny.images()).shape[1] == 1 + 16


def test_save_pretrained_inside_the_block_does_not_leak(tmp_path):
    model = DINOV2.model()
    with capture_attention(model):
        assert model.config._attn_implementation == "spectral_capture_sdpa"
        model.save_pretrained(tmp_path)

    assert "spectral_capture" not in (tmp_path / "config.json").read_text()
    reloaded = type(model).from_pretrained(tmp_path, local_files_only=True)
    assert reloaded.config._attn_implementation == "sdpa"
    assert torch.equal(run(reloaded.eval(), DINOV2.images()), run(model, DINOV2.images()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(dtype):
    model = DINOV2.model().to(dtype)
    images = DINOV2.images().to(dtype)
    expected = run(model, images)
    with capture_attention(model) as capture:
        output = run(model, images)

    assert torch.equal(output, expected)
    assert {record.query.dtype for record in capture} == {torch.float32}


@pytest.mark.parametrize("role", ["q_proj", "k_proj", "v_proj"])
def test_nan_weights_are_named(role):
    model = DINOV2.model()
    with torch.no_grad():
        getattr(model.encoder.layer[1].attention, role).weight[0, 0] = float("nan")

    with (
        pytest.raises(SpectralError, match=r"of layer 1 \('encoder.layer.1.attention'\), got NaN.*hold NaN"),
        capture_attention(model),
    ):
        run(model, DINOV2.images())
    assert is_clean(model)


def test_records_of_inference_mode_can_enter_a_graph():
    model = DINOV2.model()
    with torch.inference_mode(), capture_attention(model) as capture:
        model(DINOV2.images())

    query = capture.records[0].query
    scale = torch.ones((), requires_grad=True)
    (query * scale).sum().backward()
    assert not query.is_inference()
    assert scale.grad is not None


def test_gradients_and_training_mode_are_left_alone():
    model = DINOV2.model().train()
    images = DINOV2.images()
    with capture_attention(model) as capture:
        model(images).last_hidden_state.sum().backward()

    assert model.training
    assert model.encoder.layer[0].attention.q_proj.weight.grad is not None
    assert not any(record.query.requires_grad for record in capture)


def flags(model):
    return [module.training for module in model.modules()]


def with_dropout():
    torch.manual_seed(0)
    model = build_dinov2(drop_path_rate=0.5, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train()
    model.encoder.layer[1].eval()  # Each submodule has a flag of its own.
    return model


@pytest.mark.parametrize("fails", [False, True])
def test_the_backbone_is_in_evaluation_mode_while_captured_and_left_as_it_came(fails):
    model = with_dropout()
    before, evaluated = flags(model), copy.deepcopy(model).eval()
    expected = run(evaluated, DINOV2.images())
    assert not torch.equal(run(model, DINOV2.images()), expected)
    with contextlib.suppress(LookupError), capture_attention(model):
        assert torch.equal(run(model, DINOV2.images()), expected)
        if fails:
            raise LookupError

    assert flags(model) == before
    assert not torch.equal(run(model, DINOV2.images()), expected)


def test_batch_statistics_stay_as_they_are():
    model = with_dropout()
    model.layernorm = nn.Sequential(model.layernorm, nn.BatchNorm1d(49))
    before = copy.deepcopy(model.layernorm[1].running_mean)
    with capture_attention(model):
        run(model, DINOV2.images())
    assert torch.equal(model.layernorm[1].running_mean, before)


def test_modules_around_the_backbone_keep_their_mode():
    model = Tiny(build_clip, (64, 64), ()).model().train()
    with capture_attention(model):
        assert model.text_model.training
        assert not any(flags(model.vision_model))
    assert all(flags(model))


def test_the_last_of_several_captures_restores_the_mode():
    model = with_dropout()
    before, expected = flags(model), run(copy.deepcopy(model).eval(), DINOV2.images())
    ends, failures = [threading.Event() for _ in range(3)], []

    def work(position, entered):
        with capture_attention(model):
            entered.set()
            ends[position].wait(60)
            if not torch.equal(run(model, DINOV2.images()), expected):
                failures.append(position)

    threads = []
    for position in range(3):
        entered = threading.Event()
        threads.append(threading.Thread(target=work, args=(position, entered)))
        threads[-1].start()
        entered.wait(60)
    for position in (0, 2, 1):  # The first to come is not the last to leave.
        assert not any(flags(model))
        ends[position].set()
        threads[position].join()

    assert failures == []
    assert flags(model) == before
    assert is_clean(model)


def test_offloaded_models_are_captured():
    model, images = DINOV2.model(), DINOV2.images()
    with capture_attention(model) as expected:
        run(model, images)
    cpu_offload(model, execution_device="cpu")
    with capture_attention(model) as capture:
        run(model, images)

    assert len(capture) == 3
    assert all(torch.equal(one.query, other.query) for one, other in zip(capture, expected, strict=True))


def test_a_tower_called_by_keyword_is_read():
    model = DINOV2.model()
    with capture_attention(model) as capture:
        run(model, pixel_values=DINOV2.images())
    assert [(record.grid.height, record.grid.width) for record in capture] == [(8, 6)] * 3


def test_an_unknown_plain_backbone_is_read_by_its_numbers_with_a_warning(caplog):
    model = DINOV2.model()
    model.config.model_type = "not-in-the-registry"
    base._warn_once.cache_clear()
    with capture_attention(model) as capture:
        run(model, DINOV2.images())
    assert {record.grid.num_prefix for record in capture} == {1}
    assert [one.getMessage().split(",")[0] for one in caplog.records] == [
        "'not-in-the-registry' is no known family of backbones: 1 class tokens"
    ]


def test_an_unknown_token_order_is_skipped_with_the_reason():
    model = BACKBONES["swin"].model()
    model.config.model_type = "not-in-the-registry"
    with (
        pytest.raises(UnsupportedBackboneError, match=r"SwinModel \(.*16 tokens do not hold 15 x 13 patches"),
        capture_attention(model) as capture,
    ):
        run(model, BACKBONES["swin"].images(), **BACKBONES["swin"].forward)
    assert len(capture.skipped) == 4
    assert is_clean(model)


def test_an_announced_prefix_that_is_not_there_is_an_error():
    model = DINOV2.model()
    model.config.model_type = "deit"
    with (
        pytest.raises(SpectralError, match=r"`tokens`: expected 2 prefix tokens \+ 8 x 6 patches = 50, got 49 tokens"),
        capture_attention(model),
    ):
        run(model, DINOV2.images())
    assert is_clean(model)


def test_naflex_images_of_different_shapes_are_refused():
    model = Tiny(build_siglip2_vision, (0, 0), ()).model()
    inputs = naflex_inputs()
    inputs["spatial_shapes"] = torch.tensor([[6, 4], [4, 6]])
    with (
        pytest.raises(SpectralError, match=r"`spatial_shapes`: expected images of one shape.*one at a time"),
        capture_attention(model),
    ):
        run(model, **inputs)
    assert is_clean(model)


def test_shared_key_heads_are_repeated():
    view = TowerCall(
        DINOV2.model(),
        "encoder.layer.0.attention",
        AttentionCall(torch.zeros(1, 4, 49, 8), *torch.randn(2, 1, 2, 49, 8).unbind(), 1.0),
        {"pixel_values": DINOV2.images(count=1)},
    )
    arranged = arrange(view)

    assert arranged.attention.key.shape == (1, 4, 48, 8)
    assert torch.equal(arranged.attention.key[:, 0], view.attention.key[:, 0, 1:])
    assert torch.equal(arranged.attention.value[:, 1], view.attention.value[:, 0, 1:])
    assert torch.equal(arranged.attention.value[:, 2], view.attention.value[:, 1, 1:])


def test_unwindow_inverts_padding_shift_and_partition():
    height, width, window, shift = 5, 7, 4, 2
    raster = torch.arange(2 * height * width * 3.0).reshape(2, height, width, 3)
    padded = nn.functional.pad(raster, (0, 0, 0, 1, 0, 3)).roll((-shift, -shift), (1, 2))
    windows = padded.reshape(2, 2, window, 2, window, 3).transpose(2, 3).reshape(-1, 1, window**2, 3)

    nodes = unwindow(windows, 2, (height, width), window, shift)

    assert torch.equal(nodes, raster.reshape(2, 1, -1, 3))


def test_the_tap_reads_arguments_by_position_and_by_name():
    seen = []
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind()
    attend = nn.functional.scaled_dot_product_attention
    expected = attend(query, key, value)
    with AttentionTap(seen.append):
        first = attend(query, key, value)
        second = attend(query=query, key=key, value=value, scale=0.3)
    attend(query, key, value)

    assert torch.equal(first, expected)
    assert not torch.equal(second, expected)
    assert [attention.scale for attention in seen] == [0.5, 0.3]
    assert all(attention.key is key for attention in seen)


def test_a_recorder_notes_a_skipped_layer_once():
    recorder = Recorder("Backbone", None, None)
    recorder.skip("layer", "reason", 3)
    recorder.skip("layer", "reason", 3)
    assert recorder.capture.skipped == [SkippedLayer("layer", "reason", 3)]


def test_records_are_plain_records():
    model = build_dinov2().eval()
    with capture_attention(model) as capture:
        run(model, DINOV2.images())
    assert all(isinstance(record, AttentionRecord) and record.timestep is None for record in capture)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": TokenGrid(8, 7)}, "`query`: expected one node for each of 8 x 7 places"),
        ({"value": torch.full((1, 4, 48, 8), torch.nan)}, "`value`: expected finite numbers, got NaN"),
    ],
)
def test_a_record_made_by_hand_fits_its_grid_and_is_finite(changes, message):
    fields = {"query": torch.zeros(1, 4, 48, 8), "key": torch.zeros(1, 4, 48, 8), "value": torch.zeros(1, 4, 48, 3)}
    record = AttentionRecord("layer", 0, **fields, scale=1.0, grid=TokenGrid(8, 6))
    with pytest.raises(SpectralError, match=message):
        dataclasses.replace(record, **changes)
