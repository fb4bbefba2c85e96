"""A Wan transformer of small, odd sizes."""

from __future__ import annotations

from avd.models.wan.sizes import make_sizes

SIZES = make_sizes(
    {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 6,
        "text_dim": 24,
        "freq_dim": 32,
        "ffn_dim": 80,
        "num_layers": 3,
        "rope_max_seq_len": 16,
    },
    latent_CFHW=(4, 5, 4, 6),
    text_tokens=7,
)
NEED_NO_GRADIENT = {
    "patch_embedding",
    "condition_embedder.time_embedder.linear_1",
    "condition_embedder.text_embedder.linear_1",
}
"""Layers whose input is given: their backward takes one product, and is counted with two."""
