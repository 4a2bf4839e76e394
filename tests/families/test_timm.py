"""timm's models, as they are and in transformers' class, with their own attention functions."""

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import hf_spectral
from hf_spectral.capture import capture_attention
from hf_spectral.pipelines.hosts import in_transformers
from tests.families.proofs import assert_follows_the_quarter, assert_unchanged_by_capture, randomized

timm = pytest.importorskip("timm", reason="timm and torchvision are not installed beside")

PLAIN = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "num_heads": 4, "depth": 3}
SWIN = {"img_size": (60, 52), "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
HIERA = {"embed_dim": 16, "num_heads": 1, "stages": (1, 2, 2, 1)}
# Architecture, its sizes, grid of each layer, prefix tokens.
ARCHITECTURES = {
    "vit": ("vit_tiny_patch16_224", PLAIN, [(8, 8)] * 3, 1),
    "vit of any size": ("vit_tiny_patch16_224", {**PLAIN, "dynamic_img_size": True}, [(8, 8)] * 3, 1),
    "deit": ("deit_tiny_distilled_patch16_224", PLAIN, [(8, 8)] * 3, 2),
    "deit3": ("deit3_small_patch16_224", PLAIN, [(8, 8)] * 3, 1),
    "dinov2": ("vit_small_patch14_reg4_dinov2", PLAIN, [(8, 8)] * 3, 5),
    "siglip": ("vit_base_patch16_siglip_224", PLAIN, [(8, 8)] * 3, 0),
    "dinov3": ("vit_small_patch16_dinov3", PLAIN, [(8, 8)] * 3, 5),
    "eva02": ("eva02_tiny_patch14_224", PLAIN, [(8, 8)] * 3, 1),
    "perception encoder": ("vit_pe_core_tiny_patch16_384", PLAIN, [(8, 8)] * 3, 1),
    "rope": ("vit_small_patch16_rope_224", PLAIN, [(8, 8)] * 3, 1),
    "beit": ("beit_base_patch16_224", PLAIN, [(8, 8)] * 3, 1),
    # Three layers pool their queries.
    "hiera": ("hiera_tiny_224", HIERA, [(56, 56), (28, 28), (14, 14)], 0),
    # 15 x 13 patches: windows of 4 need padding, which timm adds after it has rolled the map.
    "swin": ("swin_tiny_patch4_window7_224", SWIN, [(15, 13)] * 2 + [(8, 7)] * 2, 0),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, [(15, 13)] * 2 + [(8, 7)] * 2, 0),
}


def build(name, is_fused=True):
    architecture, settings, _, _ = ARCHITECTURES[name]
    torch.manual_seed(0)
    timm.layers.set_fused_attn(is_fused)
    try:
        return randomized(timm.create_model(architecture, num_classes=0, **settings))
    finally:
        timm.layers.set_fused_attn(True)


def records(model, pixels):
    with capture_attention(model) as capture, torch.no_grad():
        model(pixels)
    return capture.records


def pixels_for(model, count=2):
    size = getattr(model.patch_embed, "img_size", None) or (224, 224)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_timm_model_is_read_in_raster_order_and_unchanged(name):
    _, _, grids, num_prefix = ARCHITECTURES[name]
    model = in_transformers(build(name))
    capture = assert_unchanged_by_capture(model, None)
    if name not in ("vit of any size", "dinov3"):  # These keep the picture's aspect ratio.
        assert [(record.grid.height, record.grid.width) for record in capture] == grids
    assert {record.grid.num_prefix for record in capture} == {num_prefix}
    output = assert_follows_the_quarter(model, hf.ViTImageProcessor())
    assert bool(output["result"].notes) == (name not in ("vit of any size", "dinov3"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_passed_as_it_is_gives_the_same_records_and_so_does_explicit_attention(name):
    model = build(name)
    pixels = pixels_for(model)
    by_itself, in_class = records(model, pixels), records(in_transformers(model), pixels)
    explicit = records(build(name, is_fused=False), pixels)
    assert len(by_itself) == len(in_class) == len(explicit) == len(ARCHITECTURES[name][2])
    for one, other, multiplied in zip(by_itself, in_class, explicit, strict=True):
        assert other.name == f"timm_model.{one.name}"
        assert torch.equal(one.query, other.query)
        assert torch.equal(one.value, other.value)
        torch.testing.assert_close(one.value, multiplied.value, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.key, multiplied.key, atol=1e-4, rtol=1e-4)
        # Explicit attention scales the query first, and its records have the scale 1.
        query = multiplied.query * multiplied.scale
        torch.testing.assert_close(one.query * one.scale, query, atol=1e-4, rtol=1e-4)


def test_windows_are_put_back_where_their_pixels_are():
    model = build("swin")
    pixels = pixels_for(model, count=1)
    changed = pixels.clone()
    changed[:, :, 13 * 4 : 14 * 4, 2 * 4 : 3 * 4] += 1
    # The second block is the first that is rolled; its values still follow the pixels most where they changed.
    first, second = (records(model, one)[1] for one in (pixels, changed))
    moved = (first.value - second.value).abs().sum(dim=(0, 1, 3)).reshape(15, 13)
    assert moved.flatten().argmax() == 13 * 13 + 2


def test_pixels_are_normalized_as_timm_would():
    model = build("siglip")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    pipe = hf_spectral.pipeline(model, device="cpu")  # Without an image processor: `pretrained_cfg` says it all.
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    expected = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(pipe.preprocess(image)["inputs"]["pixel_values"][0], expected)


def test_a_saved_wrapper_is_loaded_again(tmp_path):
    model = hf.TimmWrapperModel(
        hf.TimmWrapperConfig(
            architecture="vit_tiny_patch16_224",
            model_args=PLAIN,
            pretrained_cfg=timm.get_pretrained_cfg("vit_tiny_patch16_224").to_dict(),
        )
    )
    model.save_pretrained(tmp_path)
    output = hf_spectral.pipeline(tmp_path, device="cpu")(
        Image.new("RGB", (64, 64), "red"), pathway="where", num_eigenvectors=2, num_segments=None
    )
    assert output["grid"] == (8, 8)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("convnext_atto", "no self-attention"),
        ("xcit_nano_12_p16_224", "the order of tokens in this class of timm is not known"),
    ],
)
def test_other_models_of_timm_are_refused(architecture, reason):
    with pytest.raises(hf_spectral.UnsupportedBackboneError, match=rf"TimmWrapperModel \({reason}"):
        hf_spectral.pipeline(timm.create_model(architecture), device="cpu")
