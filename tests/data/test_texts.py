"""Encoded texts: their true length on disk, their full length when read, added to at any time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avd.data import EncodedTexts, encode_texts
from avd.types import Conditions, UserError

LONGEST = 6
WORDS = ["a", "", "three short words", "one two three four five six seven", "a b", "negative prompt"]


class Words:
    """Encodes each word of a text, at most six, in a row of two numbers; the last entry of a vector counts them."""

    def __init__(self, identity: str = "fake-1") -> None:
        self.identity = identity
        self.batches: list[list[str]] = []

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        self.batches.append(prompts)
        embedding, pooled = torch.zeros(len(prompts), LONGEST, 2), torch.zeros(len(prompts), 3)
        for i, words in enumerate(text.split()[:LONGEST] for text in prompts):
            for k, word in enumerate(words):
                embedding[i, k] = torch.tensor([len(word), -0.5])
            pooled[i, 0] = len(words)
        return Conditions({"embedding": embedding, "pooled": pooled})


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_texts_are_stored_with_their_true_length_and_read_with_the_full_one(tmp_path: Path) -> None:
    assert encode_texts(tmp_path, Words(), WORDS, shard_size=4) == len(WORDS)
    held, expected = EncodedTexts(tmp_path), Words().encode_prompts(WORDS)
    order = [4, 0, 3, 3, 1, 5]
    found = held.conditions([WORDS[i] for i in order])
    assert held.condition_shapes == found.shapes == {"embedding": (LONGEST, 2), "pooled": (3,)}
    for name, tensor in expected.tensors.items():
        assert torch.equal(found[name], tensor[order])
    first = load_file(tmp_path / "texts-00000.safetensors")
    assert first["rows.embedding"].tolist() == [1, 0, 3, 6] and len(first["condition.embedding"]) == 10
    assert first["rows.pooled"].tolist() == [1, 0, 1, 1]
    assert held.lacking(["a", "new", "a b", "new"]) == ["new"] and "new" not in held and "a" in held


def test_what_is_there_is_not_encoded_again(tmp_path: Path) -> None:
    encode_texts(tmp_path, Words(), WORDS[:3])
    before, encoder = contents(tmp_path), Words()
    assert encode_texts(tmp_path, encoder, [*WORDS[:3], "new", "new"]) == 1
    assert encoder.batches == [["new"]]
    assert encode_texts(tmp_path, encoder, WORDS[:3]) == 0
    assert {name: contents(tmp_path)[name] for name in before if name != "texts.json"} == {
        name: data for name, data in before.items() if name != "texts.json"
    }


def test_an_interruption_leaves_no_trace(tmp_path: Path) -> None:
    class Failing(Words):
        def encode_prompts(self, prompts: list[str]) -> Conditions:
            if len(self.batches) == stop:
                raise KeyboardInterrupt
            return super().encode_prompts(prompts)

    def encode(name: str, encoder: Words) -> None:
        encode_texts(tmp_path / name, encoder, WORDS, prompts=["a b", "a"], batch_size=1, shard_size=2)

    encode("at once", Words())
    for stop in range(len(WORDS)):
        with pytest.raises(KeyboardInterrupt):
            encode(f"{stop}", Failing())
        again = Words()
        encode(f"{stop}", again)
        assert len(again.batches) == len(WORDS) - stop // 2 * 2
        assert contents(tmp_path / f"{stop}") == contents(tmp_path / "at once")


def test_a_list_of_prompts_keeps_its_order_and_can_be_replaced(tmp_path: Path) -> None:
    encode_texts(tmp_path, Words(), [""])
    assert EncodedTexts(tmp_path).prompts == []
    encode_texts(tmp_path, Words(), [], prompts=["b é", "a", "b é"])
    held = EncodedTexts(tmp_path)
    assert held.prompts == ["b é", "a", "b é"] and len(held.conditions(held.prompts)) == 3
    held.verify()
    encode_texts(tmp_path, Words(), ["c"])
    assert EncodedTexts(tmp_path).prompts == ["b é", "a", "b é"]
    encode_texts(tmp_path, Words(), [], prompts=["c"])
    assert EncodedTexts(tmp_path).prompts == ["c"]


def test_encoders_and_dtypes_are_not_mixed(tmp_path: Path) -> None:
    encode_texts(tmp_path, Words(), ["a"])
    with pytest.raises(UserError, match="encoded with identity 'fake-1', this run has 'fake-2': choose another"):
        encode_texts(tmp_path, Words("fake-2"), ["b"])
    with pytest.raises(UserError, match="encoded with dtype 'float16', this run has 'bfloat16'"):
        encode_texts(tmp_path, Words(), ["b"], dtype="bfloat16")


def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the text 'x+' holds values that torch\.float16 cannot hold"):
        encode_texts(tmp_path, Words(), ["x" * 70_000])
    encode_texts(tmp_path, Words(), ["x" * 70_000], dtype="bfloat16")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no encoded texts: there is no texts\.json"):
        EncodedTexts(tmp_path)
    encode_texts(tmp_path, Words(), WORDS)
    path, index = tmp_path / "texts-00000.safetensors", tmp_path / "texts.json"
    good, tensors, values = path.read_bytes(), load_file(path), json.loads(index.read_text())
    names = {"texts": json.dumps(WORDS)}
    for changed, metadata, message in (
        ({"rows.embedding": torch.zeros(1)}, names, r"holds no condition\.embedding"),
        (tensors, {}, "names no texts"),
        (tensors, {"texts": "[1]"}, "names no texts"),
        (tensors | {"rows.embedding": torch.full((6,), 7)}, names, r"does not fit texts\.json"),
        (tensors | {"condition.embedding": tensors["condition.embedding"][1:]}, names, r"does not fit texts\.json"),
    ):
        save_file({name: each.contiguous() for name, each in changed.items()}, path, metadata)
        with pytest.raises(UserError, match=message):
            EncodedTexts(tmp_path)
    path.write_bytes(good[:-1])
    with pytest.raises(UserError, match="texts-00000"):
        EncodedTexts(tmp_path)
    path.write_bytes(good)
    for change, message in (({"version": 9}, "version 9"), ({"dtype": "int8"}, "damaged"), ({"shards": 3}, "damaged")):
        index.write_text(json.dumps(values | change))
        with pytest.raises(UserError, match=message):
            EncodedTexts(tmp_path)
