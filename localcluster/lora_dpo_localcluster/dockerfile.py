"""Which files of the project an image is made from, read from the Dockerfile: a hash of them names the image."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

_CONTINUED = re.compile(r"\\\n")
_HEREDOC = re.compile(r"<<-?['\"]?(\w+)['\"]?")
_IGNORED = ("__pycache__",)


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a Dockerfile.

    Attributes:
        name: its name.
        parents: the stages and images it takes from.
        sources: the files and folders of the context that it copies.
    """

    name: str
    parents: tuple[str, ...]
    sources: tuple[str, ...]


def stages(text: str) -> tuple[Stage, ...]:
    """The stages of a Dockerfile, in order."""
    found: list[Stage] = []
    for line in _instructions(text):
        words = shlex.split(line, comments=True)
        match words:
            case ["FROM", image, "AS" | "as", name]:
                found.append(Stage(name, (image,), ()))
            case ["FROM", image]:
                found.append(Stage(str(len(found)), (image,), ()))
            case ["COPY" | "ADD", *rest] if found:
                found[-1] = _with_copy(found[-1], rest)
            case _:
                continue
    return tuple(found)


def sources(text: str, target: str) -> tuple[str, ...]:
    """The files and folders of the context that a target is made from, in order of their names.

    Raises:
        KeyError: there is no such target.
    """
    by_name = {stage.name: stage for stage in stages(text)}
    wanted, seen = [by_name[target].name], set[str]()
    while wanted:
        name = wanted.pop()
        if name in by_name and name not in seen:
            seen.add(name)
            wanted += by_name[name].parents
    return tuple(sorted({source for name in seen for source in by_name[name].sources}))


def key(context: Path, target: str, extra: Iterable[str] = ()) -> str:
    """A hash of everything that decides what a target's image holds.

    Args:
        context: the folder with the Dockerfile.
        target: the target.
        extra: what else decides it, such as the base image's digest.
    """
    dockerfile = context / "Dockerfile"
    text = dockerfile.read_text()
    digest = hashlib.sha256()
    for part in (text, target, *extra):
        digest.update(hashlib.sha256(part.encode()).digest())
    for source in sources(text, target):
        for path in _files(context / source):
            digest.update(hashlib.sha256(str(path.relative_to(context)).encode()).digest())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _with_copy(stage: Stage, rest: list[str]) -> Stage:
    flags = [word for word in rest if word.startswith("--")]
    origin = next((flag.removeprefix("--from=") for flag in flags if flag.startswith("--from=")), None)
    if origin is not None:
        return dataclasses.replace(stage, parents=(*stage.parents, origin))
    paths = [word for word in rest if not word.startswith("--")][:-1]
    own = tuple(path for path in paths if not path.startswith("<<"))
    return dataclasses.replace(stage, sources=(*stage.sources, *own))


def _instructions(text: str) -> Iterator[str]:
    lines = iter(_CONTINUED.sub(" ", text).splitlines())
    for line in lines:
        if line.lstrip().startswith("#") or not line.strip():
            continue
        for end in _HEREDOC.findall(line):
            for inner in lines:
                if inner.strip() == end:
                    break
        yield line


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for entry in sorted(path.rglob("*")):
        if entry.is_file() and not any(part in _IGNORED for part in entry.parts):
            yield entry
