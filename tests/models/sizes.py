"""Sizes that the tiny models share."""

from __future__ import annotations

from tests.models.images import IMAGE, VIDEO, VISION_END, VISION_START

PAD = 0
LAYERS = 6
TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=128,
    max_position_embeddings=2048,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=None,
)
MROPE = dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=10000.0)
QWEN_VISION = dict(
    depth=3,
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    patch_size=4,
    spatial_merge_size=2,
    temporal_patch_size=2,
    in_channels=3,
    in_chans=3,
    out_hidden_size=64,
)
QWEN_IDS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END
)
CROP_VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32)
