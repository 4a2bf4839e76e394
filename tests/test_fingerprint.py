"""A basis belongs to the attention weights that it was fitted on: what differs is named, what is the same is taken."""

import copy
import dataclasses
import json
import logging
import math

import datasets
import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import hf_spectral
from hf_spectral import SpectralBasis, SpectralError, fingerprint, fit, transform
from hf_spectral.capture import attention_fingerprint, probing
from tests.families.tiny_backbones import BACKBONES, PROCESSOR, build_dinov2
from tests.pipelines.tiny_diffusion import PIPELINES, RESOLUTION, host_pipeline
from tests.synthetic import photo

DINOV2 = BACKBONES["dinov2"]
LAYER = "encoder.layer.1.attention"


class Adapter(nn.Module):
    """A low-rank adapter that keeps the layer it wraps."""

    def __init__(self, base, scale):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=scale)

    def forward(self, tokens):
        return self.base(tokens) + self.up(self.dropout(self.down(tokens)))


def noisy(model):
    weight = model.get_submodule(LAYER).v_proj.weight
    weight += 1e-2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


def adapted(model):
    model.get_submodule(LAYER).v_proj = Adapter(model.get_submodule(LAYER).v_proj, 0.1)


def merged(model):
    adapter = Adapter(model.get_submodule(LAYER).v_proj, 0.1)
    adapter.base.weight += adapter.up.weight @ adapter.down.weight


def quantized(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            step = module.weight.abs().amax(dim=1, keepdim=True) / 127
            module.weight.copy_((module.weight / step).round() * step)


def shifted(model):
    model.get_submodule(LAYER).v_proj.bias += 0.05


def changed(model, change):
    found = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(0)
        change(found)
    return found


def described(model):
    return json.loads(json.dumps(attention_fingerprint(model)))


def same(stored, found, layers=()):
    fingerprint.require_same_weights("basis", stored, found, layers)


@pytest.mark.parametrize("change", [noisy, adapted, merged, quantized, shifted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_weights_are_refused_by_name(change, dtype):
    model = DINOV2.model()
    with pytest.raises(SpectralError, match=r"attention weights that differ: layer [01] \('encoder.layer.[01]\.att"):
        same(
            described(model),
            described(changed(model, change).to(dtype)),
            layers=[(f"encoder.layer.{index}.attention", index) for index in range(3)],
        )


@pytest.mark.parametrize(
    "name", ["embeddings.position_embeddings", "encoder.layer.0.mlp.fc1.weight", "encoder.layer.1.norm1.bias"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_weights_outside_of_attention_are_refused_by_name(name, dtype):
    model = DINOV2.model()
    found = described(changed(model, lambda one: one.get_parameter(name).mul_(1.02)).to(dtype))
    with pytest.raises(SpectralError, match=f"with the same weights, got weights that differ: '{name}' by 0.0"):
        same(described(model), found)
    earlier = {part: value for part, value in described(model).items() if part != "others"}
    same(earlier, found)
    same(found, earlier)


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_are_taken_in_any_precision(family, dtype):
    model = BACKBONES[family].model()
    found = described(copy.deepcopy(model).to(dtype))
    assert found["dtype"] == str(dtype).removeprefix("torch.")
    same(described(model), found)
    same(found, described(model))


@pytest.mark.parametrize("family", BACKBONES)
def test_one_layer_of_any_family_is_enough(family):
    model = BACKBONES[family].model()
    before = described(model)
    names = list(before["projections"])
    with torch.no_grad():
        for parameter in model.get_submodule(names[-1]).parameters():
            parameter.mul_(1.02)
    with pytest.raises(SpectralError, match=f"differ: '{names[-1]}' by 0.0"):
        same(before, described(model))


@pytest.mark.parametrize("family", PIPELINES)
def test_denoisers_have_a_fingerprint(family):
    host = host_pipeline(family)
    denoiser = getattr(host, "unet", None) or host.transformer
    before = described(denoiser)
    assert all(before["projections"].values())
    same(before, described(copy.deepcopy(denoiser).to(torch.bfloat16)))
    name = list(before["projections"])[0]
    with torch.no_grad():
        denoiser.get_submodule(name).weight += 1e-2 * torch.randn(denoiser.get_submodule(name).weight.shape)
    with pytest.raises(SpectralError, match=name):
        same(before, described(denoiser))


def test_the_numbers_are_those_of_the_projection():
    model = DINOV2.model()
    numbers = attention_fingerprint(model)["projections"][f"{LAYER}.q_proj"].split()
    projection = model.get_submodule(LAYER).q_proj
    signs = fingerprint.probes(32)
    assert set(signs.flatten().tolist()) == {-1, 1}
    answer = signs @ projection.weight.detach().T + projection.bias.detach()
    expected = [answer.norm(), *(answer @ signs.T / 2).flatten()]
    assert [float(number) for number in numbers] == pytest.approx([float(one) for one in expected], rel=1e-4)
    assert math.isclose(float(numbers[0]), float(answer.norm()), rel_tol=1e-4)


def test_an_adapter_without_effect_changes_nothing_and_its_dropout_is_off():
    model = DINOV2.model()
    without = changed(model, lambda one: setattr(one.get_submodule(LAYER), "v_proj", Adapter(_v_proj(one), 0.0)))
    same(described(model), described(without))
    trained = changed(model, adapted).train()
    assert described(trained) == described(trained)
    assert all(module.training for module in trained.modules())


def _v_proj(model):
    return model.get_submodule(LAYER).v_proj


def test_neither_hooks_nor_gradients_nor_ambient_precision_matter():
    model = DINOV2.model()
    expected, calls = described(model), []
    _v_proj(model).register_forward_hook(lambda *_: calls.append(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert described(model) == expected
    with torch.inference_mode():
        assert described(model) == expected
    torch.set_float32_matmul_precision("medium")
    try:
        same(expected, described(model))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert calls == []
    assert _v_proj(model).weight.grad is None


def test_offloaded_weights_are_read_and_absent_ones_passed_over_with_a_warning(caplog):
    model = DINOV2.model()
    expected = described(model)
    offloaded = copy.deepcopy(model)
    cpu_offload(offloaded, execution_device="cpu")
    assert _v_proj(offloaded).weight.is_meta
    assert described(offloaded) == expected

    probing._warn_once.cache_clear()
    _v_proj(model).to("meta")
    with caplog.at_level(logging.WARNING):
        found = described(model)
        same(expected, found)
        same(found, expected)
        described(model)
    assert found["projections"][f"{LAYER}.v_proj"] == ""
    assert len(caplog.records) == 1
    assert f"1 projections of Dinov2Model cannot be run alone ({LAYER}.v_proj" in caplog.text


def pipe_of(model):
    return hf_spectral.pipeline(model, image_processor=PROCESSOR, device="cpu")


@pytest.fixture(scope="module")
def table():
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [photo(seed=seed) for seed in range(3)]}, features=features)


def test_a_basis_is_refused_on_every_way_and_kept_on_disk(table, tmp_path):
    model = build_dinov2().eval()
    settings = {"num_eigenvectors": 3, "resolution": 64, "progress": False}
    basis = fit(pipe_of(model), table, **settings)
    loaded = SpectralBasis.from_pretrained(basis.save_pretrained(tmp_path / "basis"))
    assert loaded.backbone == basis.backbone
    pipe_of(copy.deepcopy(model).to(torch.bfloat16))(photo(), basis=loaded)
    pipe = pipe_of(changed(model, noisy))
    message = r"`basis`: expected the backbone .* with the same attention weights, got .*layer 1 \('encoder"
    with pytest.raises(SpectralError, match=message):
        pipe(photo(), basis=basis)
    with pytest.raises(SpectralError, match=message):
        hf_spectral.pipeline(pipe.model, image_processor=PROCESSOR, device="cpu", basis=tmp_path / "basis")
    with pytest.raises(SpectralError, match=message):
        transform(pipe, table, loaded, progress=False)


def test_a_basis_of_a_denoiser_is_refused(table):
    host = host_pipeline("sd")
    pipe = hf_spectral.SpectralDiffusionPipeline.from_pipe(host).at(50)
    basis = fit(pipe, table, num_eigenvectors=3, resolution=RESOLUTION, progress=False)
    with torch.no_grad():
        host.unet.get_submodule(basis.layers[0].name).to_k.weight += 0.02
    with pytest.raises(SpectralError, match=r"layer 0 \('down_blocks.*to_k'\) by"):
        transform(pipe, table, basis, progress=False)


def test_a_checkpoint_is_refused_by_other_weights(table, tmp_path):
    model = build_dinov2().eval()
    settings = {"num_eigenvectors": 3, "resolution": 64, "progress": False, "checkpoint_dir": tmp_path}
    first = fit(pipe_of(model), table, **settings)
    again = fit(pipe_of(copy.deepcopy(model)), table, **settings)
    assert torch.equal(first.eigenvalues, again.eigenvalues)
    with pytest.raises(SpectralError, match=r"`checkpoint_dir`: .*attention weights that differ"):
        fit(pipe_of(changed(model, noisy)), table, **settings)


def test_a_basis_without_a_fingerprint_is_taken_with_one_warning(table, caplog):
    pipe = pipe_of(build_dinov2().eval())
    basis = fit(pipe, table, num_eigenvectors=3, resolution=64, progress=False)
    kept = {name: value for name, value in basis.backbone.items() if name != "attention_weights"}
    old = dataclasses.replace(basis, backbone=kept)
    fingerprint._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        pipe(photo(), basis=old)
        pipe(photo(), basis=old)
    assert caplog.text.count("holds no fingerprint of the attention weights") == 1


@pytest.mark.parametrize(
    "value", [3, {}, {"projections": {"a": 1}}, {"projections": {"a": "one two"}}, {"projections": {}, "others": 1}]
)
def test_a_damaged_fingerprint_is_refused(table, tmp_path, value):
    basis = fit(pipe_of(build_dinov2().eval()), table, num_eigenvectors=3, resolution=64, progress=False)
    folder = basis.save_pretrained(tmp_path)
    described = json.loads((folder / "config.json").read_text())
    described["backbone"]["attention_weights"] = value
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(SpectralError, match="backbone in config.json"):
        SpectralBasis.from_pretrained(folder)
