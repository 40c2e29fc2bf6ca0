"""YAML as users mean it: YAML 1.2, where `5e-6` is a number and `no` is a word.

PyYAML follows YAML 1.1 and reads `learning_rate: 5e-6` as a string.
"""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

__all__ = ["YAMLError", "dumps", "loads", "loads_all"]


def loads(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        YAMLError: the text is not YAML; the message has line and column.
    """
    return YAML(typ="safe", pure=True).load(text)


def loads_all(text: str) -> tuple[Any, ...]:
    """Parse documents separated by `---`.

    Raises:
        YAMLError: the text is not YAML; the message has line and column.
    """
    return tuple(YAML(typ="safe", pure=True).load_all(text))


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
