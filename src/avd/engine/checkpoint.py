"""Checkpoints: tensors in safetensors, the rest in JSON, written atomically.

A checkpoint is a folder `step-0000120` with a `state.json` and a `tensors-<rank>-of-<ranks>.safetensors` of each rank.
A rank writes its own shards of sharded tensors, with their places in the header; the first rank also writes what all
have. Any number of ranks can read what any number wrote. The folder is written beside its place and renamed, so
processes killed at any moment leave either the old set of checkpoints or the new one.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from avd.files import clear_unfinished, remove_folder, replace_folder, sync, unfinished, wait_until
from avd.types import UserError

_NAME = re.compile(r"step-\d{7,}")
_STATE = "state.json"


@dataclass(frozen=True)
class Piece:
    """What one rank writes of a tensor: a copy in memory of its own, on the CPU, and its place in the full tensor."""

    values: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]


def copy_pieces(tensors: Mapping[str, Tensor], *, first: bool) -> dict[str, Piece]:
    """This rank's pieces of `tensors`, as they are now. What is not sharded is the first rank's to write."""
    pieces = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            piece = _own_shard(tensor)
            if piece is not None:
                pieces[name] = piece
        elif first:
            shape = tuple(tensor.shape)
            pieces[name] = Piece(_copy(tensor), shape, (0,) * len(shape))
    return pieces


def write_pieces(folder: Path, step: int, pieces: Mapping[str, Piece], rank: int = 0, ranks: int = 1) -> int:
    """Write one rank's part of checkpoint `step`, beside its place. Returns its size in bytes."""
    writing = unfinished(_place(folder, step))
    writing.mkdir(parents=True, exist_ok=True)
    path = writing / _part(rank, ranks)
    places = {name: {"shape": piece.shape, "offset": piece.offset} for name, piece in pieces.items()}
    # A single metadata entry: safetensors does not keep the order of several.
    save_file(
        {name: piece.values for name, piece in pieces.items()}, path, {"places": json.dumps(places, sort_keys=True)}
    )
    sync(path)
    return path.stat().st_size


def missing_parts(folder: Path, step: int, sizes: Sequence[int]) -> list[int]:
    """The ranks whose part of checkpoint `step` is not beside its place as they wrote it, by its size in bytes."""
    writing = unfinished(_place(folder, step))
    paths = [writing / _part(rank, len(sizes)) for rank in range(len(sizes))]

    def missing() -> list[int]:
        held = (path.stat().st_size if path.is_file() else -1 for path in paths)
        return [rank for rank, (found, wanted) in enumerate(zip(held, sizes, strict=True)) if found != wanted]

    return [] if wait_until(lambda: not missing()) else missing()


def publish(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Make checkpoint `step`, whose parts are all written, one of those under `folder`, and keep the newest `keep` of
    them; 0 keeps all."""
    place = _place(folder, step)
    writing = unfinished(place)
    # Not `files.write_json`: a state that is not finite must come back as it was.
    (writing / _STATE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    sync(writing / _STATE)
    replace_folder(writing, place)  # there may be one of the same step, after a resume from an older one
    for old in list_checkpoints(folder)[:-keep] if keep else []:
        remove_folder(old)


def discard_pieces(folder: Path, step: int) -> None:
    """Remove what was written of checkpoint `step`, as far as the system lets it."""
    shutil.rmtree(unfinished(_place(folder, step)), ignore_errors=True)


def restore_checkpoint(saved: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Make a copy of the checkpoint `saved`, with a changed state, one of those under `folder`; none is removed."""
    state = _read_state(saved)
    step = state.pop("step")
    change(state)
    clear_unfinished(folder)
    writing = unfinished(_place(folder, step))
    shutil.copytree(saved, writing, ignore=shutil.ignore_patterns(_STATE))
    for part in writing.iterdir():
        sync(part)
    publish(folder, step, state, keep=0)


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir())


def newest_checkpoint(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and state of the newest checkpoint under `folder`, if there is one. Raises UserError if it is damaged."""
    for path in list_checkpoints(folder)[-1:]:
        with _naming_damage(path):
            return path.name, _read_state(path)
    return None


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}"


def _part(rank: int, ranks: int) -> str:
    return f"tensors-{rank:05d}-of-{ranks:05d}.safetensors"


@dataclass(frozen=True)
class Reader:
    """Who reads a checkpoint: a process with shard `shard` of `shards` of the weights, one of `ranks` processes."""

    shard: int = 0
    shards: int = 1
    ranks: int = 1

    def guess(self, parts: int) -> int:
        """The part of a checkpoint of `parts` parts that most probably holds the reader's shards."""
        return self.shard if parts == self.ranks else self.shard * parts // self.shards


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint, read from disk as they are asked for. As a context, it closes its files at the end.

    A part is opened once, when a piece is looked for that the parts before it do not hold, and stays open. The first
    part, which has a piece of every tensor, says which tensors there are. Pieces are looked for in the part that the
    reader probably wrote itself, then in the first, then in those around it: of a checkpoint that as many ranks wrote,
    a rank opens two.

    Raises UserError if a part is missing or damaged.
    """

    def __init__(self, path: Path, reader: Reader | None = None) -> None:
        self.path, self._open = path, ExitStack()
        self._parts: dict[int, _Part] = {}
        with _naming_damage(path):
            names = sorted(part.name for part in path.glob("tensors-*.safetensors"))
            self._count = len(names)
            if not names or names != [_part(number, self._count) for number in range(self._count)]:
                raise ValueError(f"holds {len(names)} tensor files that do not belong together")
            own = (reader or Reader()).guess(self._count)
            self._order = sorted(range(self._count), key=lambda part: (part != own, part != 0, abs(part - own), -part))
            self._shapes = {name: shape for name, (shape, _) in self._part(0).places.items()}

    def __enter__(self) -> SavedTensors:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. What is read afterwards opens them again."""
        self._parts.clear()
        self._open.close()

    @property
    def step(self) -> int:
        """The updates after which it was saved."""
        return int(self.path.name.rpartition("-")[2])

    def check(self) -> None:
        """Open every part. Raises UserError if one is damaged, as far as its header and its length tell."""
        with _naming_damage(self.path):
            for number in self._order:
                self._part(number)

    def __getitem__(self, name: str) -> Tensor:
        return self.region(name, (0,) * len(self._shapes[name]), self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def region(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The values from `offset` on, of this shape, put together from whichever pieces hold them."""
        self._shapes[name]  # a KeyError, if there is no such tensor
        found: Tensor | None = None
        missing = math.prod(shape)
        if not missing:
            return torch.empty(shape)
        with _naming_damage(self.path):
            for part in map(self._part, self._order):
                piece = part.read(name, offset, shape) if name in part.places else None
                if piece is None:
                    continue
                place, values = piece
                if tuple(values.shape) == shape:
                    return values
                found = torch.empty(shape, dtype=values.dtype) if found is None else found
                found[place] = values
                missing -= values.numel()
                if not missing:
                    return found
            raise ValueError(f"no part holds all of {name}")

    def _part(self, number: int) -> _Part:
        """The part of this number, opened if it is not yet."""
        if number not in self._parts:
            file = self._open.enter_context(safe_open(self.path / _part(number, self._count), framework="pt"))
            self._parts[number] = _Part(file)
        return self._parts[number]


class _Part:
    """An open file of a checkpoint: `places` holds shape of the full tensor and offset of the piece, by name."""

    def __init__(self, file: Any) -> None:
        self._file = file
        places = json.loads((file.metadata() or {})["places"])
        if places.keys() != set(file.keys()):
            raise ValueError("a tensor file does not hold what its header says")
        self.places = {name: (tuple(each["shape"]), tuple(each["offset"])) for name, each in places.items()}

    def read(
        self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]
    ) -> tuple[tuple[slice, ...], Tensor] | None:
        """What the piece of a tensor holds of the region at `offset`, and its place in the region; None if nothing."""
        if not shape:
            return (), self._file.get_tensor(name)
        stored, start = self._file.get_slice(name), self.places[name][1]
        stop = [a + n for a, n in zip(start, stored.get_shape(), strict=True)]
        low = [max(a, b) for a, b in zip(start, offset, strict=True)]
        high = [min(a, b + n) for a, b, n in zip(stop, offset, shape, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            return None
        values = stored[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))]
        return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True)), values


def load_checkpoint(path: Path) -> tuple[SavedTensors, dict[str, Any]]:
    """Tensors and state of one checkpoint, for a single process. Raises UserError if it is damaged."""
    tensors = SavedTensors(path)
    with _naming_damage(path):
        return tensors, _read_state(path)


def check_newest(folder: Path, updates: int) -> None:
    """Refuse, before any work, a run of `updates` that could not resume from the newest checkpoint under `folder`.

    Raises UserError if it is past `updates`, or damaged as far as can be seen without reading its tensors.
    """
    for path in list_checkpoints(folder)[-1:]:
        tensors, state = load_checkpoint(path)
        with tensors:
            tensors.check()
        if state["step"] > updates:
            raise UserError(
                f"{folder.parent} has done {state['step']} updates already: resume with at least that many, not "
                f"{updates}"
            )


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {path} is damaged ({error}): move it away and resume again, from the one before it"
        ) from error


def _read_state(path: Path) -> dict[str, Any]:
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise ValueError(f"{_STATE} does not say which step it was saved at")
    return state


def _own_shard(tensor: DTensor) -> Piece | None:
    """This rank's shard; None if another rank holds the same, or if it is empty."""
    mesh, placements = tensor.device_mesh, tensor.placements
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    copies = [at for at, placement in zip(coordinate, placements, strict=True) if not isinstance(placement, Shard)]
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    if any(copies) or 0 in shape:
        return None
    return Piece(_copy(tensor.to_local()), tuple(tensor.shape), tuple(offset))


def _copy(tensor: Tensor) -> Tensor:
    """A copy in memory of its own: training continues while it is written, and safetensors refuses tied weights."""
    return tensor.detach().to("cpu", copy=True).contiguous()
