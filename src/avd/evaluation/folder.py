"""Videos made elsewhere: a folder of MP4 files with a captions file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from avd.data import read_captions, read_video
from avd.data.captions import CAPTIONS_FILE
from avd.evaluation.suite import Clip, Prompt
from avd.types import UserError


class VideoFolder:
    """The files that `captions.jsonl` names, in its order.

    Raises UserError for a captions file that is broken, or that names a file which is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._entries = folder, read_captions(folder / CAPTIONS_FILE)
        for entry in self._entries:
            path = folder / entry.file
            if not path.exists():
                raise UserError(f"{path}: no such file, and {CAPTIONS_FILE} names it: add it, or remove the line")

    def __len__(self) -> int:
        return len(self._entries)

    def clips(self) -> Iterator[Clip]:
        """The clips, each decoded when it is read. Reading raises UserError for a damaged file."""
        for entry in self._entries:
            path = self._folder / entry.file
            status = path.stat()
            identity = f"{path.resolve()}, {status.st_size} bytes of {status.st_mtime_ns}"
            yield Clip(str(path), Prompt(entry.caption), partial(read_video, path), identity)
