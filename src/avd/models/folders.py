"""Where a model is: a shipped one, a diffusers folder, a hub id, or an adapter of one of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avd.types import UserError

INDEX_FILE = "model_index.json"
ADAPTER_FILE = "adapter.json"


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

    `transformer` is a safetensors file to take the transformer's weights from; `adapter` is merged into them.
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
    if name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).parent.exists():
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


def _fetch(hub_id: str) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    try:
        folder = Path(DiffusionPipeline.download(hub_id, use_safetensors=True))
        snapshot_download(hub_id, allow_patterns=["avd.json", "interpolator/*"])  # which diffusers knows nothing of
    except (OSError, ValueError) as error:
        raise UserError(
            f"{hub_id} cannot be loaded: it is not complete in the local cache and cannot be fetched: "
            "check name and network, or name a folder"
        ) from error
    return folder
