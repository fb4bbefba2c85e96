"""Videos made elsewhere: any folder of video files.

What a file shows, and which of several answers to its prompt it is (its repeat), is read from the first of these:

    captions.jsonl      the caption of each file that it names; repeats are counted in the order of its lines
    the file itself     what `avd generate` wrote into it; the repeat is i in `{prompt}-{i}.mp4`, and where files are
                        named otherwise, it is the seed
    the file's name     `{prompt}-{i}.mp4`, as VBench has it; any other name is its own prompt, and so is one whose
                        number begins with a 0 that VBench would not write: footage is numbered so

Names are compared on their first 180 characters, to which VBench-2.0 cuts them. Texts are in Unicode's form NFC: file
systems differ in theirs. Hidden files are passed over.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from avd.data import read_captions, read_video
from avd.data.captions import CAPTIONS_FILE
from avd.data.video.sources import VIDEO_SUFFIXES
from avd.evaluation.suite import Clip, Prompt, number_repeats
from avd.sampling.generation import read_description
from avd.types import UserError

_NUMBERED = re.compile(r"(?P<prompt>.+)-(?P<repeat>0|[1-9]\d{0,8})", re.DOTALL)
_NAME_LENGTH = 180


def holds_videos(folder: Path) -> bool:
    """Whether a folder is one of videos: it has captions, or video files anywhere below."""
    return (folder / CAPTIONS_FILE).exists() or any(True for _ in _video_files(folder))


def list_clips(folder: Path) -> list[Clip]:
    """The clips of a folder: those that `captions.jsonl` names, in its order, or all below it, by name.

    Each is decoded when it is read; reading raises UserError for a damaged file. Raises UserError for a captions file
    that is broken or names a file which is not there, a file that is no video or whose name is not UTF-8, and two files
    of one prompt and repeat.
    """
    if (folder / CAPTIONS_FILE).exists():
        files = _captioned(folder)
    else:
        files = _described(folder, sorted(_video_files(folder)))
    taken: dict[Prompt, Path] = {}
    for file in files:
        other = taken.setdefault(file.prompt, file.path)
        if other != file.path:
            raise UserError(
                f"{file.path} and {other} are both repeat {file.prompt.repeat} of one prompt: keep one of them, or say "
                f"with {CAPTIONS_FILE} what they show"
            )
    return [_clip(file) for file in files]


def align_prompts(sets: Sequence[Sequence[Clip]]) -> list[list[Clip]]:
    """The clips of sets that are compared, by the same prompts wherever they show the same.

    The part, a folder's name, is left out if no set needs it to tell its clips apart. A text that was cut to a file's
    name becomes the full one of another set, if only one begins with it.
    """
    prompts = [[clip.prompt for clip in clips] for clips in sets]
    apart = all(len({replace(prompt, part="") for prompt in each}) == len(each) for each in prompts)
    starts: dict[str, set[str]] = {}
    for text in {prompt.text for each in prompts for prompt in each}:
        if len(text) > _NAME_LENGTH:
            starts.setdefault(text[:_NAME_LENGTH], set()).add(text)
    full = {start: next(iter(texts)) for start, texts in starts.items() if len(texts) == 1}

    def align(prompt: Prompt) -> Prompt:
        return Prompt(full.get(prompt.text, prompt.text), prompt.repeat, "" if apart else prompt.part)

    return [[replace(clip, prompt=align(clip.prompt)) for clip in clips] for clips in sets]


@dataclass(frozen=True)
class _File:
    path: Path
    prompt: Prompt


def _video_files(folder: Path) -> Iterable[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            yield path


def _captioned(folder: Path) -> list[_File]:
    entries = read_captions(folder / CAPTIONS_FILE)
    paths = [folder / entry.file for entry in entries]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file, and {CAPTIONS_FILE} names it: add it, or remove the line")
    return list(map(_File, paths, number_repeats(_nfc(entry.caption) for entry in entries)))


def _described(folder: Path, paths: Sequence[Path]) -> list[_File]:
    """Files by what they say of themselves, else by their names; the folder they are in is the prompt's part."""
    files = []
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            shown = str(path).encode(errors="backslashreplace").decode()
            raise UserError(f"the name of {shown} is not UTF-8: rename it") from None
        part = _nfc(path.parent.relative_to(folder).as_posix()).removeprefix(".")
        about, stem = read_description(path), _nfc(path.stem)
        numbered = _NUMBERED.fullmatch(stem)
        if about is None or not {"prompt", "seed"} <= about.keys():
            text, repeat = (numbered["prompt"], int(numbered["repeat"])) if numbered else (stem, 0)
        else:
            text, repeat = _nfc(about["prompt"]), about["seed"]
            if numbered and numbered["prompt"] == text[:_NAME_LENGTH]:
                repeat = int(numbered["repeat"])
        files.append(_File(path, Prompt(text, repeat, part)))
    return files


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _clip(file: _File) -> Clip:
    status = file.path.stat()
    identity = f"{file.path.resolve()}, {status.st_size} bytes of {status.st_mtime_ns}"
    return Clip(str(file.path), file.prompt, partial(read_video, file.path), identity)
