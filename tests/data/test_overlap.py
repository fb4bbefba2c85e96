"""Prompts that are trained on and judged by: found whatever their case, punctuation and white space."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avd.data.overlap import normalized, read_heldout, shared_prompts
from avd.types import UserError

PROMPTS = ["A dog, running.", "[close-up] a cat"]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(PROMPTS),
        json.dumps([{"prompt_en": prompt, "dimension": ["x"]} for prompt in PROMPTS]),
        json.dumps(PROMPTS, indent=1),
        "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS),
        "\n".join(json.dumps({"prompt_en": prompt}) for prompt in PROMPTS),
        "\n".join(reversed(PROMPTS)),
    ],
)
def test_lists_of_every_kind_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    assert sorted(read_heldout(path)) == sorted(PROMPTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no prompts"), ("[]", "holds no prompts"), ('[{"text": "a"}]', "entry 0"), ('{"id": 1}', "'prompt'")],
)
def test_lists_without_prompts_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_heldout(path)


def test_the_same_words_are_the_same_prompt() -> None:
    captions = ["a DOG running", "a dog", "Close-up: a cat!", "a dog  running", "..."]
    assert shared_prompts(captions, [*PROMPTS, "!!"]) == ["a DOG running", "Close-up: a cat!", "a dog  running"]


@given(st.text())
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)
    assert normalized(f"  {text}!\n") == normalized(text)
