"""YAML as users mean it: YAML 1.2, where `5e-6` is a number and `no` is a word.

PyYAML follows YAML 1.1 and reads `learning_rate: 5e-6` as a string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

__all__ = ["YAMLError", "dumps", "loads", "loads_all"]


MOST_VALUES = 100_000
DEEPEST = 64
"""What a file of ours can need is far below: aliases make a short text large, and nesting exhausts the stack."""


def loads(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        YAMLError: the text is not YAML, or larger than any use of it; the message has line and column where it can.
    """
    return _bounded(lambda: YAML(typ="safe", pure=True).load(text))


def loads_all(text: str) -> tuple[Any, ...]:
    """Parse documents separated by `---`.

    Raises:
        YAMLError: see `loads`.
    """
    return tuple(_bounded(lambda: list(YAML(typ="safe", pure=True).load_all(text))))


def _bounded(read: Callable[[], Any]) -> Any:
    try:
        document = read()
    except RecursionError as error:
        raise YAMLError("it is nested too deeply") from error
    except YAMLError:
        raise
    except ValueError as error:  # a number that Python refuses to read
        raise YAMLError(str(error)) from error
    left = MOST_VALUES
    level = [document]
    for _ in range(DEEPEST):
        level = [child for value in level for child in _children(value)]
        left -= len(level)
        if left < 0:
            raise YAMLError(f"it holds more than {MOST_VALUES} values")
        if not level:
            return document
    raise YAMLError("it is nested too deeply, or holds itself")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        if any(isinstance(key, tuple | frozenset) for key in value):
            raise YAMLError("a key is not one word")
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()


_BREAKS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
"""Characters that only a quoted scalar carries unchanged: some of them are line breaks to YAML."""


_OTHER = re.compile(
    r"(?i:y|n|yes|no|on|off)"
    r"|[-+]?([0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?|\.[0-9_]+)([eE][-+]?[0-9]+)?"
    r"|[-+]?0([bB][01_]+|[oO][0-7_]+|[xX][0-9a-fA-F_]+)"
)
"""Words of YAML 1.1, which kubectl and Helm read, and numbers of 1.1 and 1.2: only quoted are they text to both."""


class _Writer(yaml.CSafeDumper):  # type: ignore[misc]
    """libyaml's writer, many times as fast as one in Python, with text quoted that some reader would take for more.

    It follows YAML 1.1; so does what it writes of numbers, which 1.2 reads alike.
    """

    def text(self, text: str) -> yaml.ScalarNode:
        quoted = _BREAKS.search(text) or _OTHER.fullmatch(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Writer.add_representer(str, _Writer.text)


def dumps(value: Any) -> str:
    """Write block-style YAML, keys in the given order."""
    written: str = yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)
    return written
