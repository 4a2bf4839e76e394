"""Tiny random denoisers, one per family, and the inputs that their forwards take."""

import dataclasses
from collections.abc import Callable

import diffusers
import torch
from torch import nn

NUM_TEXT = 7
_CHANNELS, _HEIGHT, _WIDTH = 4, 16, 24
_SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
_LATENT = {"in_channels": _CHANNELS, "sample_size": 16, "patch_size": 2}


@dataclasses.dataclass(frozen=True)
class TinyDenoiser:
    """A recipe for a tiny denoiser and what its capture must look like.

    Args:
        build: Builds the model; the caller seeds torch.
        inputs: Builds the arguments of a forward from latents and text.
        grids: Rows and columns of each recorded layer.
        text: For each recorded layer, the number of text tokens that attend along.
        latent_size: Height and width of the latents.
        timestep: What the forward is given.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[..., dict]
    grids: tuple[tuple[int, int], ...]
    text: tuple[int, ...]
    latent_size: tuple[int, int] = (_HEIGHT, _WIDTH)
    timestep: float = 10.0

    def model(self, seed: int = 0) -> nn.Module:
        """Build the model in evaluation mode, every parameter random (adaptive norms start as zeros)."""
        torch.manual_seed(seed)
        model = self.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)
        return model

    def latents(self, seed: int = 1, count: int = 1) -> torch.Tensor:
        """Return random latents."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, _CHANNELS, *self.latent_size, generator=generator)

    def text_states(self, seed: int = 2, count: int = 1) -> torch.Tensor:
        """Return random text embeddings."""
        return torch.randn(count, NUM_TEXT, 24, generator=torch.Generator().manual_seed(seed))

    def arguments(self, latents: torch.Tensor | None = None, text: torch.Tensor | None = None) -> dict:
        """Return the arguments of a forward."""
        latents = self.latents() if latents is None else latents
        return self.inputs(latents, self.text_states(count=len(latents)) if text is None else text)


def build_unet(**settings):
    fields = {
        "sample_size": 16,
        "in_channels": _CHANNELS,
        "out_channels": _CHANNELS,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return diffusers.UNet2DConditionModel(**{**fields, **settings})


def build_dit(**settings):
    return diffusers.DiTTransformer2DModel(**{**_SMALL, **_LATENT, "num_embeds_ada_norm": 10, **settings})


def build_pixart(**settings):
    fields = {"cross_attention_dim": 32, "caption_channels": 24, "use_additional_conditions": False}
    return diffusers.PixArtTransformer2DModel(**{**_SMALL, **_LATENT, **fields, **settings})


def build_sd3(**settings):
    fields = {"joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 40}
    fields |= {"out_channels": _CHANNELS, "pos_embed_max_size": 24}
    return diffusers.SD3Transformer2DModel(**{**_SMALL, **_LATENT, **fields, **settings})


def build_sd35():
    return build_sd3(dual_attention_layers=(0,), qk_norm="rms_norm")


def build_flux(**settings):
    fields = {"patch_size": 1, "in_channels": 4 * _CHANNELS, "num_layers": 1, "num_single_layers": 1}
    fields |= {"joint_attention_dim": 24, "pooled_projection_dim": 40, "axes_dims_rope": (4, 4, 8)}
    return diffusers.FluxTransformer2DModel(**{**_SMALL, **fields, **settings})


def build_lumina2(axes_lens=(64, 32, 32)):
    return diffusers.Lumina2Transformer2DModel(
        **_LATENT,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 8),
        axes_lens=axes_lens,
        cap_feat_dim=24,
    )


def build_sana(**settings):
    fields = {"patch_size": 1, "in_channels": _CHANNELS, "out_channels": _CHANNELS, "sample_size": 8}
    fields |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32}
    return diffusers.SanaTransformer2DModel(**{**_SMALL, **fields, "caption_channels": 24, **settings})


def _unet_inputs(latents, text):
    return {"sample": latents, "timestep": 10, "encoder_hidden_states": text}


def _dit_inputs(latents, text):
    count = len(latents)
    return {
        "hidden_states": latents,
        "timestep": torch.full((count,), 10),
        "class_labels": torch.full((count,), 10),
    }


def _text_inputs(latents, text):
    return {"hidden_states": latents, "timestep": torch.full((len(latents),), 10), "encoder_hidden_states": text}


def _pixart_inputs(latents, text):
    return _text_inputs(latents, text) | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def _sd3_inputs(latents, text):
    return _text_inputs(latents, text) | {"pooled_projections": torch.ones(len(latents), 40)}


def pack(latents):
    """Lay 2 x 2 latents side by side, as Flux reads them."""
    count, channels, height, width = latents.shape
    blocks = latents.view(count, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, height * width // 4, channels * 4)


def image_positions(height, width):
    positions = torch.zeros(height, width, 3)
    positions[..., 1] += torch.arange(height)[:, None]
    positions[..., 2] += torch.arange(width)
    return positions.reshape(-1, 3)


def _flux_inputs(latents, text):
    return {
        "hidden_states": pack(latents),
        "timestep": torch.full((len(latents),), 0.5),
        "encoder_hidden_states": text,
        "pooled_projections": torch.ones(len(latents), 40),
        "img_ids": image_positions(latents.shape[-2] // 2, latents.shape[-1] // 2),
        "txt_ids": torch.zeros(text.shape[1], 3),
    }


def _lumina2_inputs(latents, text):
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    return _text_inputs(latents, text) | {
        "timestep": torch.full((len(latents),), 0.5),
        "encoder_attention_mask": mask,
    }


_LEVELS = ((16, 24),) + ((8, 12),) + ((4, 6),) + ((8, 12),) * 2 + ((16, 24),) * 2
_PATCHES = ((8, 12),) * 2

DENOISERS = {
    "unet": TinyDenoiser(build_unet, _unet_inputs, _LEVELS, (0,) * 7),
    "dit": TinyDenoiser(build_dit, _dit_inputs, ((8, 8),) * 2, (0, 0), latent_size=(16, 16)),
    "pixart": TinyDenoiser(build_pixart, _pixart_inputs, _PATCHES, (0, 0)),
    "sd3": TinyDenoiser(build_sd3, _sd3_inputs, _PATCHES, (NUM_TEXT, NUM_TEXT)),
    "sd35": TinyDenoiser(build_sd35, _sd3_inputs, ((8, 12),) * 3, (NUM_TEXT, 0, NUM_TEXT)),
    "flux": TinyDenoiser(build_flux, _flux_inputs, _PATCHES, (NUM_TEXT, NUM_TEXT), timestep=0.5),
    "lumina2": TinyDenoiser(build_lumina2, _lumina2_inputs, _PATCHES, (0, NUM_TEXT), timestep=0.5),
    "sana": TinyDenoiser(build_sana, _text_inputs, ((16, 24),) * 2, (0, 0)),
}


def state(model):
    """Everything that a capture could leave behind."""
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    processors = [id(module.processor) for module in model.modules() if hasattr(module, "processor")]
    return hooks, processors, [sorted(module.__dict__) for module in model.modules()]
