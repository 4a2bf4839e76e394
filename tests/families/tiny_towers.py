"""Tiny random towers of families that differ in what is true of them alone; `test_towers` proves each of them."""

import transformers as hf

from tests.families.tiny_backbones import PROCESSOR, SIZES

VIT = {**SIZES, "intermediate_size": 64, "image_size": 64, "patch_size": 8}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
WINDOWS = {**SIZES, "image_size": 56, "patch_size": 8, "window_size": 4}


def build_mlcd():
    return hf.MLCDVisionModel(hf.MLCDVisionConfig(**VIT))


def build_tipsv2():
    return hf.Tipsv2VisionModel(hf.Tipsv2VisionConfig(**VIT, num_register_tokens=2))


def build_sapiens2():
    return hf.Sapiens2Model(hf.Sapiens2Config(**VIT))


def build_radio():
    return hf.RadioModel(hf.RadioConfig(**VIT))


def build_aimv2():
    return hf.Aimv2VisionModel(hf.Aimv2VisionConfig(**VIT))


def build_dpt():
    settings = {"backbone_out_indices": [0, 1, 2], "neck_hidden_sizes": [8, 8, 8, 8]}
    return hf.DPTForDepthEstimation(hf.DPTConfig(**VIT, **settings))


def build_internvl():
    return hf.InternVLVisionModel(hf.InternVLVisionConfig(**{**VIT, "image_size": [64, 64], "patch_size": [8, 8]}))


def build_idefics3():
    return hf.Idefics3VisionTransformer(hf.Idefics3VisionConfig(**VIT))


def build_eomt():
    queries = {"num_queries": 30, "num_blocks": 1, "num_upscale_blocks": 1, "num_register_tokens": 2}
    return hf.EomtForUniversalSegmentation(hf.EomtConfig(**VIT, **queries))


def build_yolos():
    return hf.YolosModel(hf.YolosConfig(**{**VIT, "image_size": [64, 64]}, num_detection_tokens=5))


def build_vitdet():
    settings = {"pretrain_image_size": 64, "window_block_indices": [0, 2], "use_relative_position_embeddings": True}
    return hf.VitDetModel(hf.VitDetConfig(**WINDOWS, **settings))


def build_sam_hq():
    settings = {"mlp_dim": 64, "output_channels": 16, "global_attn_indexes": [1], "initializer_range": 0.02}
    return hf.SamHQVisionModel(hf.SamHQVisionConfig(**WINDOWS, **settings))


def build_sam3():
    settings = {"intermediate_size": 64, "global_attn_indexes": [1], "pretrain_image_size": 32}
    return hf.Sam3ViTModel(hf.Sam3ViTConfig(**WINDOWS, **settings))


def build_maskformer_swin():
    return hf.MaskFormerSwinModel(hf.MaskFormerSwinConfig(**SWIN))


# The model, the processor, and the pathways that some layer of it serves.
TOWERS = {
    "mlcd": (build_mlcd, PROCESSOR, ("what", "where")),
    "tipsv2": (build_tipsv2, PROCESSOR, ("what", "where")),
    "sapiens2": (build_sapiens2, PROCESSOR, ("what", "where")),
    "radio": (build_radio, PROCESSOR, ("what", "where")),
    "aimv2": (build_aimv2, PROCESSOR, ("what", "where")),
    "dpt": (build_dpt, PROCESSOR, ("what", "where")),
    "internvl": (build_internvl, PROCESSOR, ("what", "where")),
    "idefics3": (build_idefics3, PROCESSOR, ("what", "where")),
    "eomt": (build_eomt, PROCESSOR, ("what", "where")),
    "yolos": (build_yolos, PROCESSOR, ("what", "where")),
    "vitdet": (build_vitdet, PROCESSOR, ("what", "where")),
    "sam_hq": (build_sam_hq, PROCESSOR, ("what", "where")),
    "sam3": (build_sam3, PROCESSOR, ("what", "where")),
    "maskformer_swin": (build_maskformer_swin, PROCESSOR, ("what",)),
}
