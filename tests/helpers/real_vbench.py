"""PyPI's `vbench`, installed beside this Python's packages without what it requires: only what temporal_flickering
needs. Its pins (numpy below 2, transformers 4.33) conflict with those of this project, and torchvision has no build
for every torch, so `torchvision.transforms` is a module of names that the imports of `vbench.utils` find and that
nothing in this dimension calls.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avd.files import atomic_folder

_REQUIREMENTS = ("vbench==0.1.5", "decord==0.6.0")
_TRANSFORMS = ("CenterCrop", "Compose", "InterpolationMode", "Normalize", "Resize", "ToPILImage", "ToTensor")
_MINUTES = 5


@pytest.fixture(scope="session")
def vbench_packages() -> Path:
    """A folder like site-packages with the official package. Skips where pip cannot install it."""
    installed = Path(sys.prefix) / "official" / "-".join(each.replace("==", "-") for each in _REQUIREMENTS)
    if not installed.exists():
        _install(installed)
    return installed


@pytest.fixture(scope="session")
def vbench_python(vbench_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the official package."""
    folder = tmp_path_factory.mktemp("vbench")
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("")
    names = "".join(f"class {name}:\n    BICUBIC = BILINEAR = None\n" for name in _TRANSFORMS)
    (folder / "torchvision" / "transforms.py").write_text(names)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{vbench_packages}:{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def _install(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    target.parent.mkdir(exist_ok=True)
    try:
        with atomic_folder(target) as folder:
            done = subprocess.run(
                [*command, str(folder), *_REQUIREMENTS],
                capture_output=True,
                text=True,
                check=False,
                timeout=60 * _MINUTES,
            )
            if done.returncode:
                raise OSError(done.stderr.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(target, ignore_errors=True)
        pytest.skip(f"pip cannot install {' '.join(_REQUIREMENTS)} here: {error}")
