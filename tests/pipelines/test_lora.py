"""LoRA weights that diffusers loads, before or after the pipeline is built: its layers are read with them."""

import pytest
import torch

from hf_spectral import SpectralError
from hf_spectral.pipelines.diffusers import lora
from tests.families.denoisers import TINY, denoiser_of
from tests.pipelines.tiny_diffusion import RESOLUTION, host_pipeline, spectral
from tests.synthetic import photo


def host_of(family):
    return TINY[family].pipeline() if family in TINY else host_pipeline(family)


def saved_weights(family, folder):
    """Save random LoRA weights of the denoiser, and of a text encoder of CLIP, as the host does."""
    peft = pytest.importorskip("peft", reason="peft is not installed beside")
    donor = host_of(family)
    parts = {"unet" if hasattr(donor, "unet") else "transformer": (denoiser_of(donor), ["to_q", "to_v"])}
    if family != "z_image":
        parts["text_encoder"] = (donor.text_encoder, ["q_proj", "v_proj"])
    torch.manual_seed(3)
    layers = {}
    for name, (module, projections) in parts.items():
        module.add_adapter(peft.LoraConfig(r=4, target_modules=projections, init_lora_weights=False))
        layers[f"{name}_lora_layers"] = peft.get_peft_model_state_dict(module)
    type(donor).save_lora_weights(folder, **layers)
    return list(parts)


@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "z_image"])
def test_layers_are_read_with_lora_weights_loaded_before_or_after(family, tmp_path):
    parts = saved_weights(family, tmp_path)
    pipe, host = spectral(host_of(family)).at(prompt="a cat"), host_of(family)

    def maps(one):
        return one(photo(), resolution=RESOLUTION, timesteps=50, num_eigenvectors=4, num_segments=None).eigenvectors

    plain = maps(pipe)
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    adapted = maps(pipe)
    assert (adapted - plain).abs().max() > 0.1
    assert pipe.get_list_adapters() == {part: ["style"] for part in parts}

    sharing = spectral(host).at(prompt="a cat")
    torch.testing.assert_close(maps(sharing), plain)
    host.load_lora_weights(tmp_path, adapter_name="style")
    torch.testing.assert_close(maps(sharing), adapted)
    torch.testing.assert_close(maps(spectral(host).at(prompt="a cat")), adapted)

    pipe.set_adapters(["style"], [0.0])
    torch.testing.assert_close(maps(pipe), plain, atol=1e-4, rtol=0)
    pipe.set_adapters(["style"], [1.0])
    pipe.fuse_lora(components=parts)
    assert pipe.num_fused_loras == 1
    torch.testing.assert_close(maps(pipe), adapted, atol=1e-3, rtol=0)
    with pytest.raises(SpectralError, match=r"`model`: expected .* without adapters, .*Merge them first: fuse_"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.unfuse_lora(components=parts)
    pipe.unload_lora_weights()
    torch.testing.assert_close(maps(pipe), plain, atol=1e-3, rtol=0)


def test_a_family_without_lora_weights_and_a_missing_package_are_named(monkeypatch):
    monkeypatch.setattr(lora, "USE_PEFT_BACKEND", False)
    with pytest.raises(SpectralError, match="`load_lora_weights`: expected the package peft.*pip install peft"):
        spectral(host_pipeline("sd")).load_lora_weights("style.safetensors")
    with pytest.raises(SpectralError, match="`fuse_lora`: expected a denoiser whose own pipeline loads LoRA.*got DiT"):
        spectral(host_pipeline("dit")).fuse_lora()
    assert not hasattr(spectral(host_pipeline("dit")), "load_lora_weights")
