"""Tiny random diffusion pipelines of the host, one per family, with the text encoders and VAE that they come with."""

import diffusers
import torch
import transformers as hf

from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline
from tests.families.tiny_denoisers import (
    build_dit,
    build_flux,
    build_lumina2,
    build_pixart,
    build_sana,
    build_sd3,
    build_unet,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TEXT = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
}


def clip_tokenizer():
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip_text(with_projection=False, **settings):
    settings = _TEXT | settings
    config = hf.CLIPTextConfig(**settings, projection_dim=20, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    return (hf.CLIPTextModelWithProjection if with_projection else hf.CLIPTextModel)(config).eval()


def t5_tokenizer():
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return hf.T5Tokenizer(vocab=[(piece, -float(index)) for index, piece in enumerate(pieces)], extra_ids=0)


def t5_text():
    config = hf.T5Config(vocab_size=64, d_model=24, d_kv=12, d_ff=32, num_layers=1, num_heads=2)
    return hf.T5EncoderModel(config).eval()


def gemma_tokenizer():
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, *LETTERS.upper(), "-", ".", ":", "<", ">"]
    tokenizer = hf.GemmaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])
    tokenizer.model_max_length = 8192
    return tokenizer


def chat_tokenizer():
    tokenizer = gemma_tokenizer()
    tokenizer.chat_template = "{% for one in messages %}<{{ one.role }}>{{ one.content }}{% endfor %}"
    return tokenizer


def bert_tokenizer():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = hf.BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})
    tokenizer.model_max_length = 77
    return tokenizer


def bert_text():
    return hf.BertModel(hf.BertConfig(**{**_TEXT, "vocab_size": 96}), add_pooling_layer=False).eval()


def gemma_text(**settings):
    config = hf.Gemma2Config(**{**_TEXT, "vocab_size": 96, **settings}, num_key_value_heads=1, head_dim=12)
    return hf.Gemma2Model(config).eval()


def vae(**settings):
    fields = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return diffusers.AutoencoderKL(**{**fields, **settings}).eval()


def deep_vae():
    return diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    ).eval()


def stable_diffusion():
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=build_unet(),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl():
    unet = build_unet(
        cross_attention_dim=48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=20 + 6 * 8,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(with_projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        add_watermarker=False,
    )


def dit():
    return diffusers.DiTPipeline(
        transformer=build_dit(out_channels=8, num_embeds_ada_norm=1000), vae=vae(), scheduler=diffusers.DDIMScheduler()
    )


def pixart():
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        vae=vae(),
        # The host tells sizes where the denoiser's own is 128; they are embedded in thirds of the width.
        transformer=build_pixart(
            sample_size=128, use_additional_conditions=True, num_attention_heads=3, cross_attention_dim=48
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def stable_diffusion_3():
    return diffusers.StableDiffusion3Pipeline(
        transformer=build_sd3(joint_attention_dim=48),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06),
        text_encoder=clip_text(with_projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(with_projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux():
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.1),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        transformer=build_flux(pooled_projection_dim=24, guidance_embeds=True),
    )


def lumina2():
    return diffusers.Lumina2Pipeline(
        transformer=build_lumina2(axes_lens=(300, 64, 64)),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(shift_factor=0.1),
        text_encoder=gemma_text(),
        tokenizer=gemma_tokenizer(),
    )


def sana():
    return diffusers.SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma_text(),
        vae=deep_vae(),
        transformer=build_sana(),
        scheduler=diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )


_BUILDERS = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "dit": dit,
    "pixart": pixart,
    "sd3": stable_diffusion_3,
    "flux": flux,
    "lumina2": lumina2,
    "sana": sana,
}
PIPELINES = tuple(_BUILDERS)
RESOLUTION = 32  # Pixels of the longer side: Flux has no size of its own, and its default is large.


def host_pipeline(family, seed=0):
    """Build a pipeline of the host, every parameter of its denoiser random (adaptive norms start as zeros)."""
    torch.manual_seed(seed)
    pipe = _BUILDERS[family]()
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.1)
    denoiser.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def spectral(pipe):
    """Return a quiet `SpectralDiffusionPipeline` of a host's pipeline."""
    found = pipe if isinstance(pipe, SpectralDiffusionPipeline) else SpectralDiffusionPipeline.from_pipe(pipe)
    found.set_progress_bar_config(disable=True)
    return found
