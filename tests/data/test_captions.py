"""Captions and prompts: round trips, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avd.data import CaptionedFile, read_captions, read_prompts, write_captions
from avd.types import UserError

TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
NAME = st.text("abcdefgh0123 _-é", min_size=1).filter(str.strip)


@given(entries=st.lists(st.builds(CaptionedFile, NAME, TEXT), min_size=1, unique_by=lambda entry: entry.file))
@settings(max_examples=60, deadline=None)
def test_captions_survive_a_round_trip(tmp_path_factory: pytest.TempPathFactory, entries: list[CaptionedFile]) -> None:
    path = tmp_path_factory.mktemp("captions") / "captions.jsonl"
    write_captions(path, entries)
    assert read_captions(path) == entries
    assert read_prompts(path) == [entry.caption for entry in entries]


def test_other_keys_blank_lines_and_a_byte_order_mark_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    line = json.dumps({"file": "./a//b.mp4", "caption": "a dog", "seed": 3})
    path.write_text(f"\n{line}\r\n\n", encoding="utf-8-sig")
    assert read_captions(path) == [CaptionedFile("a/b.mp4", "a dog")]


GOOD = '{"file": "a.mp4", "caption": "a dog"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + '{"file": "b.mp4", "caption": \n', r"line 2: broken JSON"),
        (GOOD + '{"caption": "a cat"}', r"line 2: no 'file' key, found \['caption'\]"),
        (GOOD + '\n{"file": "b.mp4"}', r"line 3: no 'caption' key"),
        (GOOD + '{"file": "b.mp4", "caption": "  "}', r"line 2: 'caption' is '  '"),
        (GOOD + '{"file": "b.mp4", "caption": 7}', r"line 2: 'caption' is 7"),
        (GOOD + '{"file": "", "caption": "a cat"}', r"line 2: 'file' is ''"),
        (GOOD + '{"file": "./a.mp4", "caption": "a cat"}', r"line 2: 'a.mp4' is on line 1 already"),
        (GOOD + '["b.mp4", "a cat"]', r"line 2: a JSON object is needed, found list"),
        ("\n\n", r"holds no captions"),
    ],
)
def test_bad_captions_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_captions(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_prompts_are_lines_or_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text("  a dog runs \n\na cat, {asleep}\r\n")
    assert read_prompts(path) == ["a dog runs", "a cat, {asleep}"]
    path.write_text('\n{"prompt": "a dog"}\n{"caption": "a cat", "prompt": "ignored"}\n')
    assert read_prompts(path) == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no prompts"),
        (b" \n\n", "holds no prompts"),
        (b"\xff\xfe\x00d\x00o", "not UTF-8"),
        (b"a dog\x00\x01", "binary"),
        (b'{"prompt": ""}', "line 1: 'prompt' is ''"),
        (b'{"text": "a dog"}', "line 1: no 'prompt' key"),
        (b'{"prompt": "a dog"}\na cat', "line 2: broken JSON"),
    ],
)
def test_bad_prompts_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_prompts(path)


@pytest.mark.parametrize("read", [read_captions, read_prompts])
def test_missing_files_and_folders_are_refused(tmp_path: Path, read: object) -> None:
    assert callable(read)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            read(path)
