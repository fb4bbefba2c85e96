"""The safetensors files of a cache: written atomically, named with their checksum, opened as memory maps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from avd.files import replacing
from avd.types import UserError

Dtype = Literal["float16", "bfloat16"]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PREFIX = "condition."
"""What stands before the name of a condition's tensor."""


@dataclass(frozen=True)
class ShardRecord:
    """A complete file as the journal and the manifests name it: how many items it holds, and its checksum."""

    file: str
    items: int
    sha256: str


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A memory map of a shard. Raises `UserError` naming it if it is missing, cut short or foreign."""
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read the shard {path} ({error}): prepare the cache again") from error


def save_shard(path: Path, items: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> ShardRecord:
    """Write a shard of `items` items. Of `metadata` one entry at most: safetensors does not keep the order of several.

    Raises `UserError` where the system refuses.
    """
    assert len(metadata) < 2
    try:
        with replacing(path) as writing:
            save_file(dict(tensors), writing, dict(metadata))
            digest = sha256_of(writing)
    except SafetensorError as error:  # a full disk
        raise UserError(f"cannot write {path}: {error}") from error
    return ShardRecord(path.name, items, digest)


def check_file(folder: Path, record: ShardRecord) -> None:
    """Read a file and compare its checksum. Raises `UserError` naming it if it has changed."""
    found = sha256_of(folder / record.file)
    if found != record.sha256:
        raise UserError(
            f"{folder / record.file} has changed since it was written: SHA-256 is {found[:12]}..., "
            f"the manifest says {record.sha256[:12]}...: prepare the cache again"
        )


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored(value: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """On the CPU, in a cache's dtype, and not a view of something larger.

    Raises `UserError` beginning with `what` for values that the dtype cannot hold.
    """
    result = value.detach().to("cpu", dtype, copy=True)
    if not result.isfinite().all():
        raise UserError(f"{what} holds values that {dtype} cannot hold: check the encoder")
    return result
