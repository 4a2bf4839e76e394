"""Models that something else wraps or changes: adapters, quantized layers, compiled code, copies on several devices."""

import copy

import pytest
import torch

import hf_spectral
from hf_spectral.capture import capture_attention, unwrapped
from hf_spectral.errors import UnsupportedBackboneError
from tests.families.proofs import quarter_picture
from tests.families.tiny_backbones import BACKBONES, PROCESSOR

# One that goes through the attention interface, one whose projections are hooked, one that is tapped.
FAMILIES = {"vit": ["q_proj", "v_proj"], "hiera": ["qkv"], "sam_vision": ["qkv"]}


def captured(model, tiny):
    """Return the records of a forward pass, and check that it gives what it gives without a capture."""
    with torch.no_grad():
        expected = model(tiny.images(), **tiny.forward)[0]
        with capture_attention(model) as capture:
            output = model(tiny.images(), **tiny.forward)[0]
    assert torch.equal(output, expected)
    return capture.records


def assert_the_pipeline_reads(model, inside):
    pipe = hf_spectral.pipeline(model, image_processor=PROCESSOR, device="cpu")
    assert pipe.model is inside
    assert pipe(quarter_picture(), pathway="what", num_eigenvectors=2, num_segments=None)["eigenvectors"].shape[0] == 2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_captured_as_they_act(family):
    peft = pytest.importorskip("peft", reason="peft is not installed beside")
    tiny = BACKBONES[family]
    model = tiny.model()
    plain = captured(model, tiny)
    config = peft.LoraConfig(target_modules=FAMILIES[family], init_lora_weights=False)
    wrapped = peft.get_peft_model(copy.deepcopy(model), config).eval()
    adapted = captured(wrapped, tiny)
    inside = unwrapped(wrapped)
    assert type(inside) is type(model)
    assert [record.name for record in adapted] == [record.name for record in plain]
    assert not torch.allclose(adapted[0].value, plain[0].value, atol=1e-3)
    assert_the_pipeline_reads(wrapped, inside)
    model.add_adapter(config)
    assert len(captured(model, tiny)) == len(plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_layers_are_captured(family):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed beside")
    tiny = BACKBONES[family]
    model = tiny.model()
    plain = captured(model, tiny)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    quantized = captured(model, tiny)
    for one, other in zip(plain, quantized, strict=True):
        torch.testing.assert_close(one.value, other.value, atol=0.1, rtol=0.1)


class Adapted(torch.nn.Module):
    """Stands where a linear layer was, as adapters and quantized layers do."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.in_features = base_layer, base_layer.in_features

    def forward(self, tokens):
        return 2 * self.base_layer(tokens)


def test_a_fused_projection_that_is_no_linear_layer_is_hooked():
    tiny = BACKBONES["hiera"]
    model = tiny.model()
    plain = captured(model, tiny)
    layer = model.get_submodule(plain[0].name)
    layer.qkv = Adapted(layer.qkv)
    torch.testing.assert_close(captured(model, tiny)[0].value, 2 * plain[0].value)


def test_one_copy_of_a_model_is_captured_through_data_parallel():
    tiny = BACKBONES["vit"]
    model = tiny.model()
    wrapped = torch.nn.DataParallel(model)
    for one, other in zip(captured(model, tiny), captured(wrapped, tiny), strict=True):
        assert one.name == other.name
        assert torch.equal(one.query, other.query)
    assert_the_pipeline_reads(wrapped, model)


def test_copies_on_several_devices_are_refused_by_the_name_of_the_model_inside():
    wrapped = torch.nn.DataParallel(BACKBONES["vit"].model())
    wrapped.device_ids = [0, 1]
    message = r"got DataParallel over 2 devices around a ViTModel\. Give the ViTModel inside, which is its `module`"
    with pytest.raises(UnsupportedBackboneError, match=message), capture_attention(wrapped):
        pass


def test_compiled_code_is_refused_by_the_name_of_the_model_inside_which_the_pipeline_runs():
    model = BACKBONES["vit"].model()
    wrapped = torch.compile(model, backend="eager")
    message = r"got OptimizedModule of torch\.compile around a ViTModel\. Give .*`_orig_mod`, and run that\."
    with pytest.raises(UnsupportedBackboneError, match=message), capture_attention(wrapped):
        pass
    assert_the_pipeline_reads(wrapped, model)
