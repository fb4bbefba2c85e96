"""The miniature's parts: its words, and that it is Wan2.1's classes in the stated geometry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from avd.miniature import architecture as mini
from avd.models.wan.model import VideoModel, encode_prompts
from avd.world import World, vocabulary

END, UNKNOWN = 1, 2


def test_words_are_read_full_whatever_their_case_and_punctuation() -> None:
    tokenizer = mini.build_tokenizer(["a", "red", "top-left"])
    assert tokenizer("a red").input_ids == [3, 4, END]
    assert tokenizer("A  Red, top-left.").input_ids == [3, 4, 5, END]
    assert tokenizer("a redder 7 top").input_ids == [3, UNKNOWN, UNKNOWN, END]
    assert tokenizer("").input_ids == [END]


def test_a_saved_tokenizer_reads_the_same(folder: Path, model: VideoModel) -> None:
    text = "a red circle and a blue zebra"
    assert AutoTokenizer.from_pretrained(folder / "tokenizer")(text).input_ids == model.tokenizer(text).input_ids


def test_a_tokenizer_is_saved_alike_before_and_after_it_is_used(tmp_path: Path) -> None:
    """With padding and truncation as in training, which a run that is resumed at its end has not done."""
    tokenizer = mini.build_tokenizer(vocabulary())
    tokenizer.save_pretrained(tmp_path / "before")
    encode_prompts(mini.build_text_encoder(len(tokenizer)), tokenizer, ["a red circle", ""], mini.TEXT_LENGTH)
    tokenizer.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / when / "tokenizer.json").read_bytes() for when in ("before", "after"))
    assert before == after


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_caption_of_the_world_is_known_and_fits(level: int) -> None:
    world, tokenizer = World(level), mini.build_tokenizer(vocabulary())
    tokens = [tokenizer(world.describe(i)[1].text).input_ids for i in range(100)]
    assert not any(UNKNOWN in ids for ids in tokens)
    assert max(map(len, tokens)) <= mini.TEXT_LENGTH


def test_different_prompts_have_different_embeddings(model: VideoModel) -> None:
    embeddings = model.encode_prompts(["a red circle", "a blue circle", ""])["embedding"]
    assert embeddings.shape == (3, mini.TEXT_LENGTH, mini.TEXT_WIDTH)
    assert all((embeddings[i] - embeddings[j]).abs().max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))
    assert (embeddings[0, 4:] == 0).all() and (embeddings[2, 1:] == 0).all()


def test_the_transformer_predicts_a_velocity_for_each_latent(model: VideoModel) -> None:
    x = torch.randn(2, *model.latent_shape())
    with torch.no_grad():
        v = model.velocity()(x, torch.tensor([0.2, 1.0]), model.encode_prompts(["a red circle", ""]))
    assert v.shape == x.shape and v.isfinite().all()
