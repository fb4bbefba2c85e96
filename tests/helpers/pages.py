"""Pages whose blocks of output are made by the commands above them.

`python tests/helpers/pages.py docs/planning.md` runs the commands of a page again and puts their output in its place.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

_BLOCK = re.compile(r"^```console\n\$ (avd .*?[^\\])\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def console_blocks(text: str) -> dict[str, str]:
    """Output by command line, as one line; a command may be broken by backslashes."""
    return {_one_line(command): output for command, output in _BLOCK.findall(text)}


def as_on_page(output: str) -> str:
    """Without the spaces that end lines of tables."""
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def _one_line(command: str) -> str:
    return re.sub(r"\s*\\\n\s*", " ", command)


def _run_again(block: re.Match[str]) -> str:
    command = [sys.executable, "-m", *shlex.split(_one_line(block[1]))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"```console\n$ {block[1]}\n{as_on_page(done.stdout)}```"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(_BLOCK.sub(_run_again, page.read_text(encoding="utf-8")), encoding="utf-8")
