"""Where a model is: a shipped one, a diffusers folder, a hub id, or an adapter of one of these.

A hub id may name a revision, a commit or a tag or a branch, as in `owner/model@revision`. Of the processes of a machine
one fetches; see `_fetch`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avd.files import write_json
from avd.types import UserError

INDEX_FILE = "model_index.json"
ADAPTER_FILE = "adapter.json"
_STARTED = time.time()
"""When this process began to look for models: it reads this module before it loads anything."""


@dataclass(frozen=True)
class AdapterFolder:
    """A student kept as a LoRA: the model it is an adapter of, and that model's transformer if it came from a file."""

    folder: Path
    base: str
    transformer: str | None = None

    @classmethod
    def find(cls, name: str) -> AdapterFolder | None:
        """The adapter in the folder `name`; None if it is something else. Raises UserError if it is damaged."""
        path = Path(name) / ADAPTER_FILE
        if not path.exists():
            return None
        try:
            values = read_object(path)
            unknown = values.keys() - {"base", "transformer"}
            if unknown or not isinstance(values.get("base"), str):
                raise ValueError("it names no base" if not unknown else f"it has the unknown key {min(unknown)!r}")
            if not isinstance(values.get("transformer"), str | None):
                raise ValueError(f"its transformer is {values['transformer']!r}")
            return cls(Path(name), **values)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} does not say what it is an adapter of ({error}): write the student again"
            ) from error

    def write(self) -> None:
        """Raises no error of its own; paths are made absolute, as the adapter may be used from elsewhere."""
        names = {"base": self.base, "transformer": self.transformer}
        absolute = {k: str(Path(v).resolve()) if v is not None and Path(v).exists() else v for k, v in names.items()}
        (self.folder / ADAPTER_FILE).write_text(json.dumps(absolute, indent=2) + "\n")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found: its folder, what its `model_index.json` holds, and the name it was asked for by.

    `transformer` is a safetensors file to take the transformer's weights from; `adapter` computes beside them.
    """

    name: str
    folder: Path
    index: Mapping[str, Any]
    transformer: str | None = None
    adapter: AdapterFolder | None = None

    @property
    def settings_folder(self) -> Path:
        """Where settings and interpolator lie: a student's are its own, whatever its base has."""
        return self.folder if self.adapter is None else self.adapter.folder

    @property
    def pinned(self) -> str:
        """The name; of a model of the hub, with the commit that was read."""
        is_snapshot = self.folder.parent.name == "snapshots" and not Path(self.name).is_dir()
        return f"{hub_id_of(self.name)}@{self.folder.name}" if is_snapshot else self.name


def hub_id_of(name: str) -> str:
    """A hub id without its revision."""
    return name.partition("@")[0]


def locate(name: str, shipped: Mapping[str, Path], *, fetch: bool = True) -> Path | None:
    """The folder of a shipped model, of a path, or of a hub id, which is fetched where the local cache lacks it.

    None for a hub id that is not to be fetched. Raises UserError for what is none of these or cannot be fetched.
    """
    if name in shipped:
        return shipped[name]
    if Path(name).is_dir():
        if not (Path(name) / INDEX_FILE).exists():
            raise UserError(f"{name} is not a diffusers folder: it has no {INDEX_FILE}")
        return Path(name)
    hub_id = hub_id_of(name)
    if hub_id.count("/") == 1 and not name.startswith((".", "/")) and not Path(hub_id).parent.exists():
        return _fetch(name) if fetch else None
    raise UserError(
        f"there is no model {name}: name a shipped one ({', '.join(shipped)}), a diffusers folder or a hub id"
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises OSError, or ValueError naming the file if it holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is not a JSON object")
    return values


def _fetch(name: str) -> Path:
    """A hub id's snapshot, fetched by one process of a machine; those that wait meanwhile take what it has found.

    They take its failure too, so that none tries again what has just failed. A process that was started later than
    the fetch asks the hub for itself.
    """
    hub_id, _, revision = name.partition("@")
    with _turn(hub_id, revision) as record:
        found = _found_since_start(record)
        if found is None:
            found = {"time": time.time(), "process": os.getpid(), **_download(hub_id, revision or None)}
            with suppress(UserError):  # of a cache that may only be read: then each process asks
                write_json(record, found)
    if found["folder"] is None:
        raise UserError(
            f"{name} cannot be loaded: it is not complete in the local cache and cannot be fetched "
            f"({found['error']}): check name, revision and network, or name a folder"
        )
    return Path(found["folder"])


@contextmanager
def _turn(hub_id: str, revision: str) -> Iterator[Path]:
    """Alone among the processes that share the hub's cache; the file that they tell each other what they found in."""
    from filelock import FileLock
    from huggingface_hub.constants import HF_HUB_CACHE

    record = Path(HF_HUB_CACHE) / ".locks" / f"avd--{hub_id.replace('/', '--')}@{revision.replace('/', '--')}.json"
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(record.with_suffix(".lock"))
        lock.acquire()
    except OSError:  # of a cache that may only be read, where nothing is fetched either
        yield record
        return
    try:
        yield record
    finally:
        lock.release()


def _found_since_start(record: Path) -> dict[str, Any] | None:
    """What another process has found since this one was started; a success of this one's counts too."""
    try:
        found = read_object(record)
        recent = found["time"] >= _STARTED and (found["folder"] is not None or found["process"] != os.getpid())
        return found if recent and (found["folder"] is None or Path(found["folder"]).is_dir()) else None
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is no record
        return None


def _download(hub_id: str, revision: str | None) -> dict[str, Any]:
    """The snapshot's folder, or None and the error."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        folder = str(DiffusionPipeline.download(hub_id, revision=revision, use_safetensors=True))
        own = ["avd.json", "interpolator/*"]  # which diffusers knows nothing of
        snapshot_download(hub_id, revision=revision, allow_patterns=own)
        return {"folder": folder}
    except (OSError, ValueError) as error:
        return {"folder": None, "error": type(error).__name__}
