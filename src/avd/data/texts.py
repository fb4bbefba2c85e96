"""Texts encoded once: captions, prompts, the null prompt and a negative one, each stored with its true length.

In a cache's folder beside the clips, or in a folder of its own, stand

    texts-00000.safetensors   for each tensor of `avd.types.Conditions`: `condition.<name>` (R, ...), the rows of P
    texts-00001.safetensors   texts one after the other, without the zeros that end them, and `rows.<name>` (P,), how
    ...                       many rows each text has; the metadata entry `texts` is JSON, the P texts
    prompts.jsonl             the list given with `avd prepare --prompts`, if there was one
    texts.json                by whom the texts were encoded, and the files above with their SHA-256

Reading gives back the zeros: a family's conditions have the same shape for every text. Of 512 x 4096 numbers that a
network is given for a caption, one of a hundred words fills about a third, and takes no more.

`texts.json` is written again after each file, so texts can be added at any time and an interruption costs one file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from avd.data.tensor_files import (
    DTYPES,
    PREFIX,
    Dtype,
    ShardRecord,
    check_file,
    open_shard,
    save_shard,
    sha256_of,
    stored,
)
from avd.files import read_json, read_json_lines, write_json, write_json_lines
from avd.types import Conditions, CountProgress, UserError

TEXTS = "texts.json"
_PROMPTS = "prompts.jsonl"
_FORMAT, _VERSION = "avd-texts", 1
_ROWS = "rows."
_REMEDY = "prepare the cache again"


class TextEncoder(Protocol):
    """A model as texts see it. `identity` changes whenever the encodings would."""

    @property
    def identity(self) -> str: ...

    def encode_prompts(self, prompts: list[str]) -> Conditions:
        """A row per prompt, of the same shapes for all prompts."""
        ...


class EncodedTexts:
    """The texts of a folder, by their words. Reading opens a memory map of the files it needs, and no other.

    Attributes: `identity` of the encoder, `dtype` of what is stored, `condition_shapes`, the shape of one text's tensor
    by name, and `prompts`, the folder's list of prompts, empty if there is none.

    Raises `UserError` if the folder has no texts, or they are damaged, naming the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / TEXTS).exists():
            raise UserError(f"{folder} holds no encoded texts: there is no {TEXTS} in it")
        found = read_json(folder / TEXTS, "the list of texts", _REMEDY)
        if (found.get("format"), found.get("version")) != (_FORMAT, _VERSION):
            raise UserError(
                f"{folder / TEXTS} is of format {found.get('format')}, version {found.get('version')}; this program "
                f"reads {_FORMAT}, version {_VERSION}: {_REMEDY}"
            )
        try:
            self.identity, self.dtype = str(found["identity"]), _known_dtype(found["dtype"])
            self.condition_shapes = {str(name): tuple(shape) for name, shape in found["condition_shapes"].items()}
            self.records = [ShardRecord(**record) for record in found["shards"]]
            self.prompts_record = None if found["prompts"] is None else ShardRecord(**found["prompts"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{folder / TEXTS} is damaged ({error}): {_REMEDY}") from error
        self._places: dict[str, tuple[int, int]] = {}
        self._starts: list[dict[str, Tensor]] = []
        for number, record in enumerate(self.records):
            texts, rows = _read_header(folder / record.file, self.condition_shapes)
            self._places |= {text: (number, row) for row, text in enumerate(texts)}
            self._starts.append({name: _starts(each) for name, each in rows.items()})
        self.prompts = [] if self.prompts_record is None else _read_prompts(folder)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, text: str) -> bool:
        return text in self._places

    def lacking(self, texts: Iterable[str]) -> list[str]:
        """The different ones of `texts` that are not encoded here, in their order."""
        return [text for text in dict.fromkeys(texts) if text not in self._places]

    def conditions(self, texts: Sequence[str]) -> Conditions:
        """The conditions of `texts`, float32, on the CPU. Each must be `in` this."""
        gathered = {name: torch.zeros(len(texts), *shape) for name, shape in self.condition_shapes.items()}
        places = [self._places[text] for text in texts]
        for number in sorted({shard for shard, _ in places}):
            with open_shard(self.folder / self.records[number].file) as handle:
                for name, target in gathered.items():
                    flat, starts = handle.get_slice(PREFIX + name), self._starts[number][name]
                    for i, (shard, row) in enumerate(places):
                        if shard == number:
                            first, end = starts[row : row + 2].tolist()
                            target[i, : end - first] = flat[first:end]
        return Conditions(gathered)

    @property
    def content(self) -> str:
        """A hash of what the list of prompts is, wherever the folder lies."""
        listed = "" if self.prompts_record is None else self.prompts_record.sha256
        return hashlib.sha256(repr((self.identity, self.dtype, listed)).encode()).hexdigest()

    def verify(self) -> None:
        """Read everything and compare checksums. Raises `UserError` naming the first file that has changed."""
        for record in (*self.records, *([] if self.prompts_record is None else [self.prompts_record])):
            check_file(self.folder, record)


class ListedPrompts:
    """The list of prompts of a folder, in its order: a source of the prompts of rollouts."""

    def __init__(self, texts: EncodedTexts) -> None:
        self._texts = texts
        self.captions = texts.prompts

    def __len__(self) -> int:
        return len(self.captions)

    def prompts(self, indices: Sequence[int]) -> Conditions:
        """The conditions of the prompts at `indices`, float32, on the CPU."""
        return self._texts.conditions([self.captions[index] for index in indices])


def encode_texts(
    folder: Path,
    encoder: TextEncoder,
    texts: Iterable[str],
    *,
    dtype: Dtype = "float16",
    prompts: Sequence[str] | None = None,
    batch_size: int = 16,
    shard_size: int = 256,
    progress: CountProgress | None = None,
) -> int:
    """Encode what a folder lacks of `texts` and `prompts`, in batches of `batch_size`; the number of texts it encoded.

    `prompts` becomes the folder's list of prompts; None leaves the one there is. What is already encoded is left as it
    is. An interrupted call, repeated, resumes after its last file of `shard_size` texts.

    Raises `UserError` if the folder's texts were encoded by another model or in another dtype, or a value is not finite
    in the dtype.
    """
    writer = _Writer(folder, encoder, dtype)
    lacking = writer.lacking([*texts, *(prompts or ())])
    report = progress or (lambda done, total: None)
    for start in range(0, len(lacking), shard_size):
        report(start, len(lacking))
        writer.write(lacking[start : start + shard_size], batch_size)
    if lacking:
        report(len(lacking), len(lacking))
    if prompts is not None:
        writer.list_prompts(prompts)
    return len(lacking)


def join_texts(folder: Path, parts: Sequence[Path]) -> None:
    """Let a folder hold the texts of `parts`, folders in it that were encoded alike, and no list of prompts.

    The files stay where they are; of a text that several hold, the last is read.
    """
    held = [EncodedTexts(part) for part in parts]
    records = [replace(record, file=f"{each.folder.name}/{record.file}") for each in held for record in each.records]
    _write_list(folder, held[0].identity, held[0].dtype, held[0].condition_shapes, records, None)


class _Writer:
    """Adds files of texts to a folder."""

    def __init__(self, folder: Path, encoder: TextEncoder, dtype: Dtype) -> None:
        self._folder, self._encoder, self._dtype = folder, encoder, dtype
        self._held = EncodedTexts(folder) if (folder / TEXTS).exists() else None
        self._records: list[ShardRecord] = []
        self._prompts: ShardRecord | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        if self._held is not None:
            self._refuse_to_mix(self._held)
            self._records, self._prompts = list(self._held.records), self._held.prompts_record
            self._shapes = self._held.condition_shapes

    def lacking(self, texts: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(texts)) if self._held is None else self._held.lacking(texts)

    def write(self, texts: list[str], batch_size: int) -> None:
        """Add a file that holds `texts`."""
        rows: dict[str, list[Tensor]] = {}
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            encoded = self._encoder.encode_prompts(batch)
            self._shapes = self._shapes or encoded.shapes
            assert encoded.shapes == self._shapes, "a family's conditions have one shape"
            for name, tensor in encoded.tensors.items():
                for text, value in zip(batch, tensor, strict=True):
                    full = stored(value, DTYPES[self._dtype], f"the text {text[:60]!r}")
                    rows.setdefault(name, []).append(full[: _true_length(full)].clone())
        tensors = {PREFIX + name: torch.cat(each) for name, each in rows.items()}
        tensors |= {_ROWS + name: torch.tensor([len(row) for row in each]) for name, each in rows.items()}
        path = self._folder / f"texts-{len(self._records):05d}.safetensors"
        metadata = {"texts": json.dumps(texts, ensure_ascii=False)}
        self._records.append(save_shard(path, len(texts), tensors, metadata))
        self._save()

    def list_prompts(self, prompts: Sequence[str]) -> None:
        path = self._folder / _PROMPTS
        write_json_lines(path, ({"prompt": prompt} for prompt in prompts), ascii_only=False)
        self._prompts = ShardRecord(path.name, len(prompts), sha256_of(path))
        self._save()

    def _save(self) -> None:
        _write_list(self._folder, self._encoder.identity, self._dtype, self._shapes, self._records, self._prompts)

    def _refuse_to_mix(self, held: EncodedTexts) -> None:
        for what, found, own in (
            ("identity", held.identity, self._encoder.identity),
            ("dtype", held.dtype, self._dtype),
        ):
            if found != own:
                raise UserError(
                    f"the texts of {self._folder} were encoded with {what} {found!r}, this run has {own!r}: "
                    "choose another folder"
                )


def _write_list(
    folder: Path,
    identity: str,
    dtype: Dtype,
    shapes: Mapping[str, tuple[int, ...]],
    records: Sequence[ShardRecord],
    prompts: ShardRecord | None,
) -> None:
    found = {
        "format": _FORMAT,
        "version": _VERSION,
        "identity": identity,
        "dtype": dtype,
        "condition_shapes": shapes,
        "shards": [asdict(record) for record in records],
        "prompts": None if prompts is None else asdict(prompts),
    }
    write_json(folder / TEXTS, found, indent=1)


def _starts(rows_P: Tensor) -> Tensor:
    """Where the rows of each of P texts begin, and (P + 1) where the last end."""
    return torch.cat([torch.zeros(1, dtype=torch.long), rows_P.cumsum(0)])


def _true_length(value: Tensor) -> int:
    """Rows up to the last that is not all zero."""
    filled = value.flatten(1).any(1) if value.dim() > 1 else value != 0
    return int(filled.nonzero().max()) + 1 if filled.any() else 0


def _read_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[list[str], dict[str, Tensor]]:
    """The texts of a file, and how many rows each has of each tensor. Raises `UserError` if they do not fit."""
    with open_shard(path) as handle:
        names, metadata = set(handle.keys()), handle.metadata() or {}
        missing = [each for name in shapes for each in (PREFIX + name, _ROWS + name) if each not in names]
        if missing:
            raise UserError(f"{path} holds no {missing[0]}: {_REMEDY}")
        rows = {name: handle.get_tensor(_ROWS + name) for name in shapes}
        flat = {name: tuple(handle.get_slice(PREFIX + name).get_shape()) for name in shapes}
    try:
        texts = json.loads(metadata["texts"])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("its texts are no list of texts")
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} names no texts ({error!r}): {_REMEDY}") from error
    for name, shape in shapes.items():
        each = rows[name]
        fits = each.shape == (len(texts),) and bool(((each >= 0) & (each <= shape[0])).all())
        if not fits or flat[name] != (int(each.sum()), *shape[1:]):
            raise UserError(f"{path} does not fit {TEXTS}: {_REMEDY}")
    return texts, rows


def _read_prompts(folder: Path) -> list[str]:
    path = folder / _PROMPTS
    try:
        prompts = [record["prompt"] for record in read_json_lines(path, _REMEDY)]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): {_REMEDY}") from error
    return prompts


def _known_dtype(name: Any) -> Dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}")
    dtype: Dtype = name
    return dtype
