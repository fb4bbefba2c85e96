"""Are prompts trained on that a model will be judged by?

A benchmark's prompt list is text with one prompt per line, or JSON or JSONL whose objects have a `prompt`, as VBench's
`VBench_full_info.json` has with `prompt_en`. Prompts are the same if their words are, whatever the case, the
punctuation and the white space.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from avd.data.captions import read_prompts
from avd.files import read_text
from avd.types import UserError

_PROMPT_KEYS = ("caption", "prompt_en", "prompt")


def normalized(prompt: str) -> str:
    """The words of a prompt, in lower case, parted by single spaces."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", folded).split())


def read_heldout(path: Path) -> list[str]:
    """The prompts of a list. Raises `UserError` if it is unreadable, holds none, or is JSON without a prompt."""
    text = read_text(path)
    try:
        records = json.loads(text) if text.lstrip().startswith("[") else None
    except json.JSONDecodeError:
        records = None  # a prompt may begin with a bracket
    if not isinstance(records, list):
        return read_prompts(path, keys=_PROMPT_KEYS)
    prompts = [_prompt(path, number, record) for number, record in enumerate(records)]
    if not prompts:
        raise UserError(f"{path} holds no prompts")
    return prompts


def shared_prompts(captions: Iterable[str], heldout: Iterable[str]) -> list[str]:
    """The different `captions` that are also in `heldout`, in their order."""
    known = {normalized(prompt) for prompt in heldout} - {""}
    return [caption for caption in dict.fromkeys(captions) if normalized(caption) in known]


def _prompt(path: Path, number: int, record: object) -> str:
    if isinstance(record, dict):
        record = next((record[key] for key in _PROMPT_KEYS if key in record), None)
    if not isinstance(record, str):
        raise UserError(f"{path}, entry {number}: a text, or an object with a text 'prompt', is needed")
    return record
