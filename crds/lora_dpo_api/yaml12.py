"""YAML as users mean it: YAML 1.2, where `5e-6` is a number and `no` is a word.

PyYAML follows YAML 1.1 and reads `learning_rate: 5e-6` as a string.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

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


_YAML11 = re.compile(
    r"(?i:y|n|yes|no|on|off)|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?(e[-+]?[0-9]+)?|[-+]?0(b[01_]+|x[0-9a-fA-F_]+)"
)
"""Words and numbers of YAML 1.1, which kubectl and Helm read: only quoted are they text to both versions."""


class _Representer(SafeRepresenter):
    """Quotes strings that some reader would take for something else."""

    def represent_text(self, text: str) -> ScalarNode:
        quoted = _BREAKS.search(text) or _YAML11.fullmatch(text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Representer.add_representer(str, _Representer.represent_text)


def dumps(value: Any) -> str:
    """Write block-style YAML, keys in the given order."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.width = 120
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue()
