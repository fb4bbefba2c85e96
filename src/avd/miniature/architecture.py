"""`wan-mini`: the classes of Wan2.1 with small configs, so that a laptop walks every path a cluster walks.

Geometry: 17 frames of 48 x 48 at 8 fps; latents 12 x 5 x 6 x 6 (compressed 4x in time, 8x in space like Wan2.1);
patches of 1 x 2 x 2, 45 tokens per clip.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

LATENT_CHANNELS = 12
TEXT_LENGTH = 32
"""Tokens a prompt is padded or cut to; pass it to diffusers' `WanPipeline` as `max_sequence_length`."""
TEXT_WIDTH = 64
GUIDANCE = 2.0
SHIFT = 2.0
"""How the miniature teacher is sampled."""


def build_vae() -> AutoencoderKLWan:
    """A Wan VAE that works on 2 x 2 pixel patches and has shortcuts, like Wan2.2's: fast enough for a CPU."""
    return AutoencoderKLWan(
        base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        is_residual=True,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )


def build_transformer() -> WanTransformer3DModel:
    """A Wan transformer of 3.9 M parameters: 6 layers of width 192."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=768,
        num_layers=6,
        rope_max_seq_len=64,
    )


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Lower-case words; a word outside `words` becomes <unk>. Prompts end with </s>, as with UMT5."""
    special = ["<pad>", "</s>", "<unk>"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]+(?:-[a-z]+)*"), behavior="removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )
    # A tokenizer is saved with the padding and truncation of its last call: make them those of training from the start.
    tokenizer([""], padding="max_length", max_length=TEXT_LENGTH, truncation=True)
    return tokenizer


def build_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """A UMT5 encoder of two layers, trained together with the teacher."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary_size,
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
