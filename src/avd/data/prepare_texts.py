"""From prompts to encoded texts, without videos: a folder of prompts, or what a finished cache lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avd.data.cache import MANIFEST, is_begun, read_manifest
from avd.data.captions import read_prompts
from avd.data.tensor_files import Dtype
from avd.data.texts import TEXTS, EncodedTexts, TextEncoder, encode_texts
from avd.files import LOCK_FILE, FolderLock, is_unfinished
from avd.types import CountProgress, UserError


def prepare_texts(
    output: Path,
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    prompts: Path | None = None,
    dtype: Dtype = "float16",
    progress: CountProgress | None = None,
) -> int:
    """Encode the `texts` and the lines of the file `prompts` that `output` lacks; the number of texts encoded.

    `output` is a finished cache, whose clips are not touched and whose dtype stays, or a folder of prompts; with
    `prompts`, which become its list, it may be new or empty. `progress` is called with the number of texts done and of
    all. An interrupted call, repeated, resumes.

    Raises `UserError` for a file that cannot be read, a folder in use by anything else or by another process, a cache
    that is unfinished, and one of another model.
    """
    listed = None if prompts is None else read_prompts(prompts)
    held = _held(output, encoder, new=listed is not None)
    output.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(output, f"the folder {output}")
    lock.acquire()
    try:
        return encode_texts(output, encoder, texts, dtype=held or dtype, prompts=listed, progress=progress)
    finally:
        lock.release()


def _held(output: Path, encoder: TextEncoder, *, new: bool) -> Dtype | None:
    """The dtype of what `output` holds; None if it holds nothing, and `new` says that it need not."""
    begun = is_begun(output) and not (output / MANIFEST).exists()  # which may hold texts already, those of its parts
    if (output / TEXTS).exists() and not begun:
        return EncodedTexts(output).dtype
    if (output / MANIFEST).exists() or begun:
        manifest = read_manifest(output)
        if manifest.get("identity") != encoder.identity:
            raise UserError(
                f"the latent cache {output} was prepared with another model ({manifest.get('identity')}, this one is "
                f"{encoder.identity}): name the model that it was made with"
            )
        dtype: Dtype = "bfloat16" if manifest.get("dtype") == "bfloat16" else "float16"
        return dtype
    if not new:
        raise UserError(
            f"{output} is no cache to add texts to: name a folder of videos, or prompts with --prompts FILE"
        )
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: name a new folder for the prompts")
    if output.exists() and any(not is_unfinished(part) and part.name != LOCK_FILE for part in output.iterdir()):
        raise UserError(f"{output} holds other files: name a new folder for the prompts")
    return None
