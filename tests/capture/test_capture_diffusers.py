"""Capture from denoisers: every family's layers, grids and token order, on the processors that users run."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.attention_processor import AttnProcessor, XFormersJointAttnProcessor

from hf_spectral import BasisAccumulator, SpectralConfig, SpectralError, UnsupportedBackboneError, build_problem
from hf_spectral.capture import capture_attention, check_supported
from hf_spectral.families.diffusers import FAMILIES
from tests.families.tiny_denoisers import DENOISERS, NUM_TEXT, build_pixart, image_positions, state
from tests.synthetic import random_record

WITH_TEXT = ["sd3", "sd35", "flux", "lumina2"]
# The first layer whose values are the projections of image tokens that no text has reached yet.
FIRST = dict.fromkeys(DENOISERS, 0) | {"lumina2": 1}


def run(model, arguments):
    with torch.no_grad():
        return model(**arguments)[0]


def captured(model, arguments, **settings):
    with capture_attention(model, **settings) as capture:
        output = run(model, arguments)
    return output, capture


def same_records(one, other, **tolerance):
    assert [record.name for record in one] == [record.name for record in other]
    for left, right in zip(one, other, strict=True):
        for role in ("query", "key", "value"):
            torch.testing.assert_close(getattr(left, role), getattr(right, role), **tolerance)


@pytest.mark.parametrize("family", DENOISERS)
def test_every_image_layer_is_recorded_and_nothing_else_changes(family):
    tiny = DENOISERS[family]
    model, arguments = tiny.model(), tiny.arguments(tiny.latents(count=2))
    expected, before = run(model, arguments), state(model)

    output, capture = captured(model, arguments)

    assert torch.equal(output, expected)
    assert state(model) == before
    assert capture.skipped == []
    assert tuple((record.grid.height, record.grid.width) for record in capture) == tiny.grids
    assert tuple(record.num_text_tokens for record in capture) == tiny.text
    assert [record.index for record in capture] == list(range(len(tiny.grids)))
    assert {record.timestep for record in capture} == {tiny.timestep}
    assert {record.num_images for record in capture} == {2}
    assert {record.query.dtype for record in capture} == {torch.float32}


@pytest.mark.parametrize("family", DENOISERS)
def test_a_denoiser_loaded_from_disk_gives_the_same_records(family, tmp_path):
    tiny = DENOISERS[family]
    model = tiny.model()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)

    _, expected = captured(model, tiny.arguments())
    _, capture = captured(loaded, tiny.arguments())
    # Weights mapped from a file lie at other addresses, and kernels of the CPU round by alignment.
    same_records(capture, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", DENOISERS)
def test_text_reaches_no_image_row_of_the_first_values(family):
    tiny = DENOISERS[family]
    model = tiny.model()
    output, capture = captured(model, tiny.arguments())
    changed_output, changed = captured(model, tiny.arguments(text=tiny.text_states(seed=9)))

    position = FIRST[family]
    assert torch.equal(capture.records[position].value, changed.records[position].value)
    if family != "dit":  # It reads a class, no text.
        assert not torch.equal(output, changed_output)


@pytest.mark.parametrize("family", DENOISERS)
@pytest.mark.parametrize("place", [(0, 0), (3, 5), (7, 7)])
def test_rows_move_with_the_image(family, place):
    tiny = DENOISERS[family]
    model = tiny.model()
    latents = tiny.latents()
    moved = latents.clone()
    grid = tiny.grids[FIRST[family]]
    patch = latents.shape[-2] // grid[0]
    rows, columns = (slice(axis * patch, (axis + 1) * patch) for axis in place)
    moved[..., rows, columns] += 3

    _, capture = captured(model, tiny.arguments(latents))
    _, changed = captured(model, tiny.arguments(moved))

    position = FIRST[family]
    change = (changed.records[position].value - capture.records[position].value).norm(dim=-1).sum(dim=(0, 1))
    found = divmod(int(change.argmax()), grid[1])
    # Convolutions before the first attention of a UNet blur the change over its neighbors.
    reach = 2 if family == "unet" else 0
    assert max(abs(found[0] - place[0]), abs(found[1] - place[1])) <= reach
    if family in {"dit", "pixart", "sd3", "sd35", "flux", "sana"}:
        assert int((change > 0).sum()) == 1


@pytest.mark.parametrize(
    ("family", "roles"),
    [
        ("unet", "qkv"),
        ("dit", "qkv"),
        ("pixart", "qkv"),
        ("sd3", "qkv"),
        ("sd35", "v"),
        ("flux", "v"),
        ("lumina2", "v"),
    ],
)
def test_records_equal_the_projections(family, roles):
    tiny = DENOISERS[family]
    model = tiny.model()
    seen = {}
    for name, module in model.named_modules():
        if name.endswith(("to_q", "to_k", "to_v")):
            module.register_forward_hook(lambda _, args, output, name=name: seen.__setitem__(name, output))
    _, capture = captured(model, tiny.arguments())

    for record in capture:
        for role, tokens in (("q", record.query), ("k", record.key), ("v", record.value)):
            if role not in roles:
                continue
            projected = seen[f"{record.name}.to_{role}"].unflatten(-1, (-1, tokens.shape[-1])).transpose(1, 2)
            if family in {"flux", "lumina2"}:  # Text first where both streams are one.
                projected = projected[:, :, -record.grid.num_nodes :]
            assert torch.equal(tokens, projected.expand_as(tokens))


def test_queries_are_those_that_a_rotating_layer_compares():
    tiny = DENOISERS["flux"]
    model = tiny.model()
    _, capture = captured(model, tiny.arguments())
    shifted = tiny.arguments()
    shifted["img_ids"] = shifted["img_ids"] + torch.tensor([0.0, 2.0, 1.0])
    _, moved = captured(model, shifted)

    first, other = capture.records[0], moved.records[0]
    assert torch.equal(first.value, other.value)
    assert not torch.allclose(first.query, other.query)
    # A rotary embedding sees differences of positions only.
    torch.testing.assert_close(first.query @ first.key.mT, other.query @ other.key.mT)


@pytest.mark.parametrize("how", ["sliced", "math"])
def test_sliced_and_plain_attention_are_read_from_the_projections(how):
    tiny = DENOISERS["unet"]
    model, arguments = tiny.model(), tiny.arguments()
    _, expected = captured(model, arguments)
    if how == "sliced":
        model.set_attention_slice("max")
    else:
        model.set_attn_processor(AttnProcessor())
    plain, before = run(model, arguments), state(model)

    output, capture = captured(model, arguments)

    assert torch.equal(output, plain)
    assert state(model) == before
    same_records(capture, expected, atol=1e-5, rtol=1e-5)
    assert [record.scale for record in capture] == pytest.approx([record.scale for record in expected])


@pytest.mark.parametrize("family", ["unet", "pixart", "sd3", "flux"])
def test_fused_projections_are_captured(family):
    tiny = DENOISERS[family]
    model, arguments = tiny.model(), tiny.arguments()
    _, expected = captured(model, arguments)
    model.fuse_qkv_projections()
    plain, before = run(model, arguments), state(model)

    output, capture = captured(model, arguments)

    assert torch.equal(output, plain)
    assert state(model) == before
    same_records(capture, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["unet", "sd3", "flux", "lumina2", "sana"])
def test_offloaded_denoisers_are_captured(family):
    tiny = DENOISERS[family]
    model = tiny.model()
    _, expected = captured(model, tiny.arguments())
    cpu_offload(model, execution_device="cpu")
    _, capture = captured(model, tiny.arguments())
    same_records(capture, expected, atol=0, rtol=0)


def test_another_attention_backend_is_refused_with_the_call_that_fixes_it():
    model = DENOISERS["flux"].model()
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.set_attention_backend("flex")
    with pytest.raises(
        UnsupportedBackboneError, match=r"backend 'flex' in .*model.set_attention_backend\(\"native\"\)"
    ):
        check_supported(model)
    model.set_attention_backend("native")
    assert len(captured(model, DENOISERS["flux"].arguments())[1]) == 2


def test_another_backend_around_the_call_is_refused_too():
    model, arguments = DENOISERS["flux"].model(), DENOISERS["flux"].arguments()
    before = state(model)
    # Flex attention says in a warning that it is not compiled; the rest of its run is of no interest here.
    with (
        pytest.warns(UserWarning, match="flex_attention"),
        attention_backend("flex"),
        pytest.raises(UnsupportedBackboneError, match=r"set_attention_backend\(\"native\"\)"),
    ):
        captured(model, arguments)
    assert state(model) == before


def test_a_joint_layer_that_hides_its_attention_is_refused():
    model = DENOISERS["sd3"].model()

    class Hidden(XFormersJointAttnProcessor):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            for projection in (attn.to_q, attn.to_k, attn.to_v):
                projection(hidden_states)
            return hidden_states, encoder_hidden_states

    model.set_attn_processor(Hidden())
    with pytest.raises(UnsupportedBackboneError, match="got Hidden in 'transformer_blocks.0.attn'"):
        captured(model, DENOISERS["sd3"].arguments())


@pytest.mark.parametrize(
    ("family", "text", "reason"),
    [
        ("sd3", "first", "values that differ from the projection"),
        ("flux", "last", "values that differ from the projection"),
        ("lumina2", "last", "rotations that differ"),
    ],
)
def test_a_wrong_token_order_does_not_pass(family, text, reason, monkeypatch):
    model = DENOISERS[family].model()
    name = type(model).__name__
    monkeypatch.setattr(FAMILIES[name], "text", text)
    before = state(model)
    with pytest.raises(SpectralError, match=f"`model`: expected image tokens .* the text tokens in .*{reason}"):
        captured(model, DENOISERS[family].arguments())
    assert state(model) == before


def test_a_single_stream_is_verified_by_its_rotations(monkeypatch):
    model = DENOISERS["flux"].model()
    model.transformer_blocks = model.transformer_blocks[:0]
    assert len(captured(model, DENOISERS["flux"].arguments())[1]) == 1
    monkeypatch.setattr(FAMILIES["FluxTransformer2DModel"], "text", "last")
    with pytest.raises(SpectralError, match="rotations that differ"):
        captured(model, DENOISERS["flux"].arguments())


@pytest.mark.parametrize("family", ["unet", "flux", "sana"])
def test_an_exception_leaves_the_denoiser_clean(family):
    tiny = DENOISERS[family]
    model, before = tiny.model(), None
    before = state(model)

    def leave():
        with capture_attention(model):
            run(model, tiny.arguments())
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        leave()
    assert state(model) == before
    assert len(captured(model, tiny.arguments())[1]) == len(tiny.grids)


def test_layers_are_chosen_in_call_order():
    tiny = DENOISERS["unet"]
    _, capture = captured(tiny.model(), tiny.arguments(), layers=[2, -1])
    assert [(record.index, (record.grid.height, record.grid.width)) for record in capture] == [
        (2, (4, 6)),
        (6, (16, 24)),
    ]


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_threads_share_a_denoiser(family):
    tiny = DENOISERS[family]
    model = tiny.model()
    batches = [tiny.arguments(tiny.latents(seed=seed)) for seed in range(3)]
    expected = [captured(model, arguments) for arguments in batches]
    barrier = threading.Barrier(3)

    def work(position):
        barrier.wait()
        for _ in range(4):
            output, capture = captured(model, batches[position])
            assert torch.equal(output, expected[position][0])
            same_records(capture, expected[position][1], atol=0, rtol=0)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))  # Raises what a thread has raised.


def test_linear_attention_serves_what_only():
    tiny = DENOISERS["sana"]
    _, capture = captured(tiny.model(), tiny.arguments())
    assert len(build_problem(capture, SpectralConfig("what")).layers) == 2
    assert all(float(record.query.min()) == 0 for record in capture)  # Queries as compared: rectified.
    with pytest.raises(SpectralError, match=r"'where' \(.*attends linearly.*Try pathway='what'"):
        build_problem(capture, SpectralConfig("where"))


def test_a_basis_leaves_out_what_cannot_serve_where():
    refused = [random_record(where_refused="it attends linearly")]
    accumulator = BasisAccumulator(SpectralConfig("where", "cosine"))
    with pytest.raises(SpectralError, match="Try pathway='what'"):
        accumulator.add_sums(refused)
    mixed = [*refused, random_record(index=1)]
    accumulator = BasisAccumulator(SpectralConfig("where", "cosine"))
    accumulator.add_sums(mixed)
    accumulator.add_gram(mixed)
    assert [layer.name for layer in accumulator.solve(2).layers] == ["layer.1"]


@pytest.mark.parametrize("model", [diffusers.AutoencoderKL(), torch.nn.Linear(2, 2)], ids=["vae", "linear"])
def test_what_is_no_denoiser_is_refused(model):
    with pytest.raises(UnsupportedBackboneError, match="`model`: expected a"):
        check_supported(model)


def test_subclasses_of_a_denoiser_are_known():
    class Custom(diffusers.PixArtTransformer2DModel):
        pass

    model = build_pixart()
    model.__class__ = Custom
    assert len(captured(model.eval(), DENOISERS["pixart"].arguments())[1]) == 2


def test_several_pictures_in_one_sequence_are_skipped_with_the_reason():
    tiny = DENOISERS["flux"]
    arguments = tiny.arguments()
    reference = image_positions(8, 12) + torch.tensor([1.0, 0.0, 0.0])
    arguments["img_ids"] = torch.cat([arguments["img_ids"], reference])
    arguments["hidden_states"] = arguments["hidden_states"].repeat(1, 2, 1)
    with pytest.raises(UnsupportedBackboneError, match="`img_ids` hold several images"):
        captured(tiny.model(), arguments)


def test_batches_that_no_record_can_hold_are_refused():
    tiny = DENOISERS["lumina2"]
    arguments = tiny.arguments(tiny.latents(count=2))
    arguments["encoder_attention_mask"][1, 3:] = False
    with pytest.raises(SpectralError, match=r"`encoder_attention_mask`: expected prompts of one length, got \[3, 7\]"):
        captured(tiny.model(), arguments)
    arguments = tiny.arguments(tiny.latents(count=2))
    arguments["timestep"] = torch.tensor([0.25, 0.5])
    with pytest.raises(SpectralError, match=r"`timestep`: expected one timestep.*got \[0.25, 0.5\]"):
        captured(tiny.model(), arguments)


def test_padding_of_a_caption_is_no_image():
    tiny = DENOISERS["lumina2"]
    arguments = tiny.arguments()
    arguments["encoder_attention_mask"][:, 4:] = False
    _, capture = captured(tiny.model(), arguments)
    assert [(record.grid.num_prefix, record.num_text_tokens) for record in capture] == [(0, 0), (4, 4)]


def test_nan_in_the_latents_is_named():
    tiny = DENOISERS["dit"]
    latents = tiny.latents()
    latents[..., 0, 0] = float("nan")
    with pytest.raises(SpectralError, match=r"layer 0 \('transformer_blocks.0.attn1'\), got NaN"):
        captured(tiny.model(), tiny.arguments(latents))


@pytest.mark.parametrize("family", WITH_TEXT)
def test_more_text_than_image_tokens_is_no_matter(family):
    tiny = dataclasses.replace(DENOISERS[family], latent_size=(4, 4))
    long_text = torch.randn(1, 8 * NUM_TEXT, 24, generator=torch.Generator().manual_seed(0))
    _, capture = captured(tiny.model(), tiny.arguments(text=long_text))
    assert {record.grid.num_nodes for record in capture} == {4}
    assert len(capture) == len(tiny.grids)
