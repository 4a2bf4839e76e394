"""Models that cannot be captured, each refused by name, with the reason and the next step."""

import pytest
import torch
import transformers as hf
from torch import nn

from hf_spectral.capture import capture_attention, check_supported, vision_tower
from hf_spectral.errors import UnsupportedBackboneError
from tests.tiny_backbones import BACKBONES


def build_convnext():
    return hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))


def build_focalnet():
    return hf.FocalNetModel(
        hf.FocalNetConfig(
            image_size=32, embed_dim=8, hidden_sizes=[8, 16], depths=[1, 1], focal_levels=[1, 1], focal_windows=[3, 3]
        )
    )


def build_poolformer():
    return hf.PoolFormerModel(hf.PoolFormerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]))


def build_resnet():
    return hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))


def build_bert():
    return hf.BertModel(
        hf.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, vocab_size=20)
    )


def build_segformer():
    return hf.SegformerModel(
        hf.SegformerConfig(
            hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
        )
    )


def build_pvt():
    return hf.PvtModel(hf.PvtConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1]))


def run_captured(model, entry, images):
    with capture_attention(model), torch.no_grad():
        entry(images)


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (build_convnext, "ConvNextModel", "no self-attention"),
        (build_focalnet, "FocalNetModel", "no self-attention"),
        (build_poolformer, "PoolFormerModel", "no self-attention"),
        (build_resnet, "ResNetModel", "no self-attention"),
        (build_bert, "BertModel", "no vision tower: takes no pixel_values"),
        (build_segformer, "SegformerModel", "its keys are spatially reduced"),
        (build_pvt, "PvtModel", "its keys are spatially reduced"),
    ],
)
def test_a_model_without_readable_attention_is_refused(build, name, reason):
    model = build()
    message = rf"`model`: expected .*, got {name} \({reason}.*\)\. Choose .*facebook/dinov2-small\."
    with pytest.raises(UnsupportedBackboneError, match=message):
        check_supported(model)
    with pytest.raises(UnsupportedBackboneError, match=message), capture_attention(model):
        pass


def test_a_text_model_has_no_vision_tower():
    with pytest.raises(UnsupportedBackboneError, match="BertModel"):
        vision_tower(build_bert())


def test_an_implementation_that_shows_nothing_is_refused():
    model = BACKBONES["vit"].model()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UnsupportedBackboneError, match=r"ViTModel with 'flex_attention'. Call model.set_attn_implem"):
        check_supported(model)
    assert model.config._attn_implementation == "flex_attention"


def test_a_module_of_no_host_is_refused():
    with pytest.raises(UnsupportedBackboneError, match=r"expected a model of transformers.*, got Linear. Give the pre"):
        check_supported(nn.Linear(2, 2))


def test_a_wrapped_model_is_refused_with_the_way_out():
    wrapped = torch.compile(BACKBONES["vit"].model(), backend="eager")
    with pytest.raises(
        UnsupportedBackboneError, match="OptimizedModule. Give the pretrained model itself: unwrap torch"
    ):
        check_supported(wrapped)


def test_a_model_compiled_in_place_is_refused():
    model = BACKBONES["vit"].model()
    model.layers[0].compile(backend="eager")
    with pytest.raises(
        UnsupportedBackboneError, match=r"ViTModel \(compiled in place by model.compile\(\); load it again"
    ):
        check_supported(model)


@pytest.mark.parametrize("family", BACKBONES)
def test_supported_families_pass_the_check(family):
    model = BACKBONES[family].model()
    check_supported(model)
    assert vision_tower(model) is not None


def test_a_masked_hiera_is_refused_after_its_forward():
    model = hf.HieraModel(BACKBONES["hiera"].model().config, is_mae=True).eval()
    with pytest.raises(UnsupportedBackboneError, match=r"HieraModel \(encoder.*masks patches at random"):
        run_captured(model, model, BACKBONES["hiera"].images())


def test_a_bypassed_attention_is_refused_after_the_forward():
    model = BACKBONES["dinov2"].model()
    model.encoder.layer = nn.ModuleList()
    model.encoder.unused = BACKBONES["dinov2"].model().encoder.layer[0]
    with pytest.raises(UnsupportedBackboneError, match=r"Dinov2Model \(none of its attention layers was called\)"):
        run_captured(model, model, BACKBONES["dinov2"].images())
