"""What is true of one family of backbones alone: one file per family, found by the class or `model_type` it serves."""
