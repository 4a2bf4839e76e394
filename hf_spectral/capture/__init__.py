"""Read query, key and value of every self-attention layer of a backbone, and leave the backbone as it came."""

from hf_spectral.capture.base import capture_attention, check_supported, unwrapped
from hf_spectral.capture.probing import attention_fingerprint
from hf_spectral.capture.towers import vision_tower

__all__ = ["attention_fingerprint", "capture_attention", "check_supported", "unwrapped", "vision_tower"]
