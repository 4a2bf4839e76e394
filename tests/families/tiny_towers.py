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


HIERA = {"image_size": [192, 192], "window_positional_embedding_background_size": [7, 7], "num_attention_heads": 1}
HIERA |= {"hidden_size": 16, "blocks_per_stage": [1, 2, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128]}
HIERA |= {"num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [8, 4, 4, 2]}
BACKBONE = {**SWIN, "depths": [1] * 4, "num_heads": [2] * 4, "out_features": ["stage2", "stage3", "stage4"]}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
TEXT = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 300}
QWEN = {"depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 8}


def build_sam2():
    detector = hf.Sam2HieraDetConfig(**HIERA, global_attention_blocks=[4])
    sizes = {"backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    return hf.Sam2VisionModel(hf.Sam2VisionConfig(backbone_config=detector, fpn_hidden_size=16, **sizes))


def build_qwen2_vl():
    config = hf.Qwen2VLConfig(vision_config={**QWEN, "embed_dim": 32}, text_config={**TEXT, "rope_parameters": ROPE})
    return hf.Qwen2VLModel(config)


def build_qwen2_5_vl():
    vision = {**QWEN, "out_hidden_size": 32, "intermediate_size": 64, "window_size": 80, "fullatt_block_indexes": [1]}
    return hf.Qwen2_5_VLModel(hf.Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE}))


def build_qwen3_vl():
    vision = {**QWEN, "out_hidden_size": 32, "intermediate_size": 64, "deepstack_visual_indexes": [0]}
    text = {**TEXT, "head_dim": 8, "rope_parameters": ROPE}
    vision["num_position_embeddings"] = 64
    return hf.Qwen3VLModel(hf.Qwen3VLConfig(vision_config=vision, text_config=text))


def build_qwen3_5():
    vision = {**QWEN, "out_hidden_size": 32, "intermediate_size": 64, "num_position_embeddings": 64}
    config = hf.models.qwen3_5.configuration_qwen3_5.Qwen3_5VisionConfig(**vision)
    return hf.models.qwen3_5.modeling_qwen3_5.Qwen3_5VisionModel(config)


def build_glm4v():
    vision = {**QWEN, "out_hidden_size": 32, "intermediate_size": 64, "image_size": 64}
    config = hf.models.glm4v.configuration_glm4v.Glm4vVisionConfig(**vision)
    return hf.models.glm4v.modeling_glm4v.Glm4vVisionModel(config)


def build_gemma4():
    heads = {"num_key_value_heads": 4, "head_dim": 8, "patch_size": 8}
    return hf.Gemma4VisionModel(hf.Gemma4VisionConfig(**SIZES, intermediate_size=64, **heads))


def build_pixtral():
    return hf.PixtralVisionModel(hf.PixtralVisionConfig(**VIT, head_dim=8))


def build_videomae():
    return hf.VideoMAEModel(hf.VideoMAEConfig(**VIT, num_frames=4, tubelet_size=2))


def build_vjepa2():
    clip = {"crop_size": 64, "patch_size": 8, "frames_per_clip": 4, "pred_num_hidden_layers": 2}
    predictor = {"pred_hidden_size": 32, "pred_num_attention_heads": 4}
    return hf.VJEPA2Model(hf.VJEPA2Config(**SIZES, **clip, **predictor))


def build_rf_detr():
    windows = {"num_windows": 2, "window_block_indexes": [0, 2], "out_features": ["stage3"]}
    backbone = hf.RfDetrDinov2Config(**SIZES, image_size=64, patch_size=8, **windows)
    sizes = {"d_model": 32, "decoder_self_attention_heads": 4, "decoder_cross_attention_heads": 4, "num_queries": 5}
    return hf.RfDetrModel(hf.RfDetrConfig(backbone_config=backbone, decoder_layers=1, group_detr=1, **sizes))


def build_lw_detr():
    # Without windows of their own, all layers are global, and their rows are in the order of windows all the same.
    backbone = hf.LwDetrViTConfig(**SIZES, image_size=64, pretrain_image_size=64, patch_size=8, num_windows=4)
    return hf.LwDetrViTBackbone(backbone)


def build_owlv2():
    text = {**SIZES, "intermediate_size": 64, "vocab_size": 60}
    return hf.Owlv2Model(hf.Owlv2Config(text_config=text, vision_config=VIT))


def build_vitpose():
    sizes = {**VIT, "image_size": [64, 48], "patch_size": [8, 8]}
    backbone = hf.VitPoseBackboneConfig(**sizes, out_features=["stage3"], num_experts=1)
    return hf.VitPoseForPoseEstimation(hf.VitPoseConfig(backbone_config=backbone, num_labels=3))


def build_mask2former():
    backbone = hf.SwinConfig(**{**BACKBONE, "out_features": ["stage1", *BACKBONE["out_features"]]})
    sizes = dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size"), 32)
    return hf.Mask2FormerModel(hf.Mask2FormerConfig(backbone_config=backbone, **sizes, encoder_layers=1))


def build_grounding_dino():
    text = hf.BertConfig(**SIZES, intermediate_size=64, vocab_size=60)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 5, "d_model": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = hf.GroundingDinoConfig(backbone_config=hf.SwinConfig(**BACKBONE), text_config=text, **layers, **heads)
    return hf.GroundingDinoModel(config)


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
    "sam2": (build_sam2, PROCESSOR, ("what", "where")),
    "qwen2_vl": (build_qwen2_vl, hf.Qwen2VLImageProcessor(), ("what", "where")),
    "qwen2_5_vl": (build_qwen2_5_vl, hf.Qwen2VLImageProcessor(), ("what", "where")),
    "qwen3_vl": (build_qwen3_vl, hf.Qwen2VLImageProcessor(), ("what", "where")),
    "qwen3_5": (build_qwen3_5, hf.Qwen2VLImageProcessor(), ("what", "where")),
    "glm4v": (build_glm4v, hf.Qwen2VLImageProcessor(), ("what", "where")),
    "gemma4": (build_gemma4, PROCESSOR, ("what", "where")),
    "pixtral": (build_pixtral, PROCESSOR, ("what", "where")),
    "videomae": (build_videomae, hf.VideoMAEImageProcessor(), ("what", "where")),
    "vjepa2": (build_vjepa2, PROCESSOR, ("what", "where")),
    "rf_detr": (build_rf_detr, PROCESSOR, ("what", "where")),
    "lw_detr": (build_lw_detr, PROCESSOR, ("what", "where")),
    "owlv2": (build_owlv2, hf.Owlv2ImageProcessor(), ("what", "where")),
    "vitpose": (build_vitpose, hf.VitPoseImageProcessor(), ("what", "where")),
    "mask2former": (build_mask2former, PROCESSOR, ("what",)),
    "grounding_dino": (build_grounding_dino, PROCESSOR, ("what",)),
}
