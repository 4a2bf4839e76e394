"""Models that cannot be captured, each refused by name, with the reason and the next step."""

import dataclasses
import warnings

import pytest
import torch
import transformers as hf
from PIL import Image
from torch import nn

import hf_spectral
from hf_spectral.capture import capture_attention, check_supported, vision_tower
from hf_spectral.errors import SpectralError, UnsupportedBackboneError
from hf_spectral.families.transformers import FAMILIES, VisionFamily
from hf_spectral.result import SpectralResult
from tests.families.tiny_backbones import BACKBONES, SIZES, build_bert, build_convnext
from tests.synthetic import photo

PLAIN = {**SIZES, "intermediate_size": 64, "image_size": 64, "patch_size": 8}
TEXT = {**SIZES, "intermediate_size": 64, "vocab_size": 60}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1] * 4, "num_heads": [2] * 4, "window_size": 4}


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


def build_segformer():
    return hf.SegformerModel(
        hf.SegformerConfig(
            hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
        )
    )


def build_pvt():
    return hf.PvtModel(hf.PvtConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1]))


def build_detr():
    resnet = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"])
    return hf.DetrModel(hf.DetrConfig(backbone_config=resnet, d_model=16, encoder_layers=1, decoder_layers=1))


def build_groupvit():
    stages = {"depths": [1, 1, 1], "num_group_tokens": [4, 4, 0], "num_output_groups": [4, 4, 4]}
    vision = {**PLAIN, **stages, "num_hidden_layers": 3}
    return hf.GroupViTModel(hf.GroupViTConfig(text_config={**TEXT, "eos_token_id": 59}, vision_config=vision))


def build_depth_pro():
    dinov2 = {"model_type": "dinov2", **SIZES, "image_size": 64, "patch_size": 8}
    models = dict.fromkeys(("image_model_config", "patch_model_config", "fov_model_config"), dinov2)
    return hf.DepthProModel(hf.DepthProConfig(patch_size=64, **models))


def build_layoutlmv3():
    return hf.LayoutLMv3Model(hf.LayoutLMv3Config(**TEXT, input_size=64, patch_size=8, coordinate_size=6, shape_size=4))


def build_vivit():
    return hf.VivitModel(hf.VivitConfig(**PLAIN, num_frames=4, tubelet_size=[2, 8, 8]))


def build_xclip():
    return hf.XCLIPVisionModel(hf.XCLIPVisionConfig(**PLAIN, num_frames=4))


def build_seggpt():
    shapes = {"image_size": [128, 64], "pretrain_image_size": 64}
    depths = {"decoder_hidden_size": 16, "intermediate_hidden_state_indices": [0, 1, 2], "merge_index": 0}
    return hf.SegGptModel(hf.SegGptConfig(**{**PLAIN, **shapes, **depths}))


def build_vilt():
    return hf.ViltModel(hf.ViltConfig(**PLAIN))


def build_vitmatte():
    vitdet = hf.VitDetConfig(**SIZES, image_size=64, patch_size=8, num_channels=4, out_features=["stage3"])
    channels = {"convstream_hidden_sizes": [8, 8], "fusion_hidden_sizes": [8, 8, 8]}
    return hf.VitMatteForImageMatting(hf.VitMatteConfig(backbone_config=vitdet, hidden_size=32, **channels))


def the_refusal(name, reason):
    expected = "a backbone whose self-attention layers show query, key and value on one grid"
    return rf"^`model`: expected {expected}, got {name} \({reason}.*\)\. Choose .*facebook/dinov2-small\.$"


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
        (build_detr, "DetrModel", "in its ResNetBackbone: no self-attention"),
        (build_groupvit, "GroupViTModel", "its GroupViTConfig does not state the `patch_size` of pictures"),
        (build_depth_pro, "DepthProModel", "its backbone reads crops of the picture at several scales"),
        (build_layoutlmv3, "LayoutLMv3Model", "its LayoutLMv3Config does not state the `image_size` of pictures"),
        (build_vivit, "VivitModel", "it reads videos, not pictures"),
        (build_xclip, "XCLIPVisionModel", "it reads videos, not pictures"),
        (build_vitmatte, "VitMatteForImageMatting", "in its VitDetBackbone: it reads pictures of 4 channels"),
        (build_seggpt, "SegGptModel", "its forward needs prompt_pixel_values and prompt_masks beside pixel_values"),
    ],
)
def test_a_model_without_readable_attention_is_refused(build, name, reason):
    model = build()
    message = the_refusal(name, reason)
    with pytest.raises(UnsupportedBackboneError, match=message):
        check_supported(model)
    with pytest.raises(UnsupportedBackboneError, match=message), capture_attention(model):
        pass


@pytest.mark.parametrize(
    ("build", "processor", "name", "reason"),
    [
        (build_vilt, hf.ViltImageProcessor, "ViltModel", "ValueError: You have to specify either input_ids"),
    ],
)
def test_what_only_a_forward_pass_shows_is_the_same_refusal(build, processor, name, reason, tmp_path):
    pipe = hf_spectral.pipeline(build().eval(), image_processor=processor(), device="cpu")
    with pytest.raises(
        UnsupportedBackboneError, match=the_refusal(name, f"no picture can be read: {reason}")
    ) as caught:
        pipe(photo())
    assert type(caught.value.__cause__).__name__ == reason.partition(":")[0]
    photo().save(tmp_path / "photo.png")
    with pytest.raises(UnsupportedBackboneError, match=name):  # Not an image to be skipped.
        hf_spectral.fit(pipe, tmp_path, pathway="what", num_eigenvectors=2, on_error="skip")


def test_a_processor_that_makes_videos_is_refused():
    pipe = hf_spectral.pipeline(
        BACKBONES["vit"].model(), image_processor=hf.VideoMAEImageProcessor(do_resize=False), device="cpu"
    )
    with pytest.raises(UnsupportedBackboneError, match=the_refusal("ViTModel", "VideoMAEImageProcessor.* of 5 axes")):
        pipe(photo())


@pytest.fixture
def dinov2_pipe():
    processor = hf.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    return hf_spectral.pipeline(BACKBONES["dinov2"].model(), image_processor=processor, device="cpu")


def test_what_a_callback_raises_is_not_the_backbone(dinov2_pipe):
    def fail(record):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="^mine$"):
        dinov2_pipe.records([dinov2_pipe.preprocess(photo())], fail)


def test_a_failure_that_hangs_on_the_resolution_blames_the_resolution(dinov2_pipe):
    embeddings = dinov2_pipe.model.embeddings

    def fail_beyond_64(module, args, kwargs):
        if max((*args, *kwargs.values())[0].shape[-2:]) > 64:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117]\nnot enough memory")

    with embeddings.register_forward_pre_hook(fail_beyond_64, with_kwargs=True):
        message = r"^`resolution`: expected a size .*, got 88 x 128 pixels \(RuntimeError: \[enforce.* memory\)\."
        with pytest.raises(SpectralError, match=message) as caught:
            dinov2_pipe(photo(), resolution=128)
        assert not isinstance(caught.value, UnsupportedBackboneError)
        assert dinov2_pipe(photo())["grid"] == (5, 8)


def test_a_failure_that_hangs_on_the_picture_is_left_as_it_is(dinov2_pipe):
    def fail_on_bright(module, args, kwargs):
        if (*args, *kwargs.values())[0].max() > 1:
            raise RuntimeError("too bright")

    hook = dinov2_pipe.model.embeddings.register_forward_pre_hook(fail_on_bright, with_kwargs=True)
    with hook, pytest.raises(RuntimeError, match="^too bright$"):
        dinov2_pipe(Image.new("RGB", (90, 60), "white"))


def test_a_layer_of_an_unforeseen_structure_is_refused_with_its_name(monkeypatch):
    model = BACKBONES["dinov2"].model()

    @dataclasses.dataclass(frozen=True)
    class Unforeseen(VisionFamily):
        def arrange(self, call):
            return call.tower.no_such_part

    monkeypatch.setitem(FAMILIES, "dinov2", Unforeseen(("dinov2",)))
    with pytest.raises(UnsupportedBackboneError, match=r"Dinov2Model \(encoder\.layer\.0.*AttributeError") as caught:
        run_captured(model, model, BACKBONES["dinov2"].images())
    assert isinstance(caught.value.__cause__, AttributeError)


FIXED = {
    "aimv2": lambda: hf.Aimv2VisionModel(hf.Aimv2VisionConfig(**PLAIN)),
    "hiera": BACKBONES["hiera"].model,
    "sam_vision": BACKBONES["sam_vision"].model,
}


@pytest.mark.parametrize("family", FIXED)
def test_a_stretched_picture_is_said_once_and_in_every_result(family, tmp_path):
    processor = hf.ViTImageProcessor(size={"height": 64, "width": 64})
    pipe = hf_spectral.pipeline(FIXED[family]().eval(), image_processor=processor, device="cpu", num_eigenvectors=3)
    height, width = vision_tower_size(pipe)
    settings = {"pathway": "what", "num_segments": None, "return_result": True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Within the rounding to patches: nothing is stretched.
        assert pipe(photo(10 * height + 5, 10 * width), **settings)["result"].notes == ()
    said = f"reads one size of pictures only: the picture of 60 x 200 pixels was stretched to {height} x {width}, "
    with pytest.warns(UserWarning, match=said) as caught:
        outputs = pipe(
            [photo(60, 200), photo(60, 200, 1), photo(10 * height, 10 * width)],
            batch_size=3,
            **settings,
        )
    assert len(caught) == 1
    assert [[said in note for note in output["result"].notes] for output in outputs] == [[True], [True], []]
    kept = SpectralResult.from_pretrained(outputs[0]["result"].save_pretrained(tmp_path / "result.safetensors"))
    assert kept.notes == outputs[0]["result"].notes


def vision_tower_size(pipe):
    size = vision_tower(pipe.model).config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


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
