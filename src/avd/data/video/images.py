"""A folder of numbered pictures, seen as a video.

The pictures are the PNG, JPEG and WebP files whose name, without its suffix, ends in a number. They are shown in the
order of their numbers, one after the other; numbers left out take no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
_NUMBER = re.compile(r"[0-9]+$")


def numbered_pictures(names: Iterable[str]) -> list[str]:
    """The names of numbered pictures among `names`, in the order of their numbers.

    Raises `ValueError`, saying which, if two have the same number: the order would be anyone's guess.
    """
    by_number: dict[int, str] = {}
    for name in sorted(names):
        path = PurePath(name)
        number = _NUMBER.search(path.stem)
        if number is None or path.suffix.lower() not in PICTURE_SUFFIXES or name.startswith("."):
            continue
        other = by_number.setdefault(int(number.group()), name)
        if other != name:
            raise ValueError(f"{other} and {name} have the same number")
    return [by_number[number] for number in sorted(by_number)]
