"""Errors of the API, each of which says where, what, and what is allowed.

```
ApiError
├── SpecError      a LoraDpoJob that cannot run as written
└── ConfigError    a trainer configuration that cannot run as written
```

Both carry one `Problem` for each wrong field, so that a user can mend all of them at once.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lora_dpo_api import durations

ABSENT = object()
"""The value of a problem with a field that is not there."""

RULE = "rule"
"""Type of a complaint that a model's own rules make; its context holds triples of field, message and value."""

_SHOWN = 80
_SECRETIVE = ("env", "envFrom", "env_from")
"""Fields whose values may be credentials, and are never repeated."""


_SYNONYMS = {
    "rank": "r",
    "loraalpha": "alpha",
    "epochs": "num_epochs",
    "maxsteps": "num_train_steps",
    "steps": "num_train_steps",
}
"""What other trainers call these fields."""

_EXPECTED = {
    "model_type": "must hold fields",
    "dict_type": "must hold keys and values",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
}
"""Pydantic's complaints about types, for people who write YAML."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong field.

    Attributes:
        path: the field, such as `spec.tpu.topology`.
        reason: what is wrong, without path and value.
        allowed: what would be right; empty when `reason` says it.
        value: what was found, or `ABSENT`.
    """

    path: str
    reason: str
    allowed: tuple[str, ...] = ()
    value: object = ABSENT

    def __str__(self) -> str:
        """One sentence: path, value, reason, what is allowed."""
        value = "" if self.value is ABSENT or _secretive(self.path) else f"{shown(self.value)} "
        allowed = f"; allowed: {', '.join(self.allowed)}" if self.allowed else ""
        return f"{self.path}: {value}{self.reason}{allowed}"


class ApiError(Exception):
    """Base of this package's errors."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


class SpecError(ApiError):
    """A LoraDpoJob cannot run as written."""


class ConfigError(ApiError):
    """A trainer configuration cannot run as written."""


def shown(value: object) -> str:
    """A value as YAML users write it, bounded."""
    text = {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    folded = {_folded(key): key for key in known}
    initials = {"".join(part[0] for part in re.split(r"_|(?=[A-Z])", key) if part).lower(): key for key in known}
    wanted = _folded(_SYNONYMS.get(_folded(word), word))
    found = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else initials.get(wanted)


def problems_of(error: ValidationError, model: type[BaseModel], data: object, prefix: str = "") -> tuple[Problem, ...]:
    """Pydantic's complaints as sentences a user can act on.

    Args:
        error: what `model` said about `data`.
        model: the model that refused.
        data: the raw input, to tell keys from the names of union members in pydantic's paths.
        prefix: path of `data` itself, such as `spec`.
    """
    found: list[Problem] = []
    for detail in error.errors(include_url=False):
        location = _location(detail, data)
        path = join([prefix, *map(str, location)] if prefix else [str(part) for part in location])
        if detail["type"] == RULE:
            found += [
                Problem(join([path, field]) if field else path, text, value=value)
                for field, text, value in detail["ctx"]["problems"]
            ]
            continue
        problem = _problem(detail, path, _model_at(model, location[:-1]), str(location[-1]) if location else "")
        if all(problem.path != other.path for other in found):
            found.append(problem)
    return tuple(found)


def join(parts: Sequence[str]) -> str:
    """A field path; numbers become indices: `a.b[0]`."""
    path = ""
    for part in parts:
        path += f"[{part}]" if part.isdigit() and path else f".{part}" if path else part
    return path


def _folded(key: str) -> str:
    return key.replace("_", "").replace("-", "").lower()


def _secretive(path: str) -> bool:
    return any(part.split("[")[0] in _SECRETIVE for part in path.split("."))


def _location(detail: ErrorDetails, data: object) -> list[str | int]:
    """The keys of pydantic's path; the names of union members in it are left out."""
    location: list[str | int] = []
    here: object = data
    parts = detail["loc"]
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if (isinstance(here, Mapping) and part in here) or (
            isinstance(here, Sequence) and not isinstance(here, str) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]  # type: ignore[index]
            location.append(part)
        elif last and detail["type"] in ("missing", "union_tag_not_found"):
            location.append(part)
    return location


def _problem(detail: ErrorDetails, path: str, model: type[BaseModel] | None, key: str) -> Problem:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    match kind:
        case "missing":
            return Problem(path, "is required")
        case "extra_forbidden":
            known = _keys(model, key)
            guess = nearest(key, known)
            return Problem(path, "is unknown" + (f"; did you mean {guess}?" if guess else ""), tuple(known))
        case "enum" | "literal_error":
            allowed = str(context["expected"]).replace(" or ", ", ").replace("'", "")
            return Problem(path, "is not allowed", tuple(allowed.split(", ")), value)
        case "greater_than":
            return Problem(path, f"must be above {context['gt']}", value=value)
        case "greater_than_equal":
            return Problem(path, f"must be at least {context['ge']}", value=value)
        case "less_than":
            return Problem(path, f"must be below {context['lt']}", value=value)
        case "less_than_equal":
            return Problem(path, f"must be at most {context['le']}", value=value)
        case "string_pattern_mismatch":
            if context["pattern"] == durations.PATTERN:
                return Problem(path, "is not a duration; write it like 90s, 2m, 1h30m or 7d", value=value)
            return Problem(path, f"has the wrong form; it must match {context['pattern']}", value=value)
        case "union_tag_invalid" | "union_tag_not_found":
            return Problem(
                path, "needs a type", tuple(str(context.get("expected_tags", "url, hf")).replace("'", "").split(", "))
            )
        case "value_error":
            return Problem(path, str(context["error"]))
        case _ if kind in _EXPECTED:
            return Problem(path, _EXPECTED[kind], value=value)
        case _:
            return Problem(path, detail["msg"][:1].lower() + detail["msg"][1:], value=value)


def _keys(model: type[BaseModel] | None, key: str) -> list[str]:
    if model is None:
        return []
    camel = any(field.alias for field in model.model_fields.values())
    snake = "_" in key and not camel
    return sorted(name if snake or not field.alias else field.alias for name, field in model.model_fields.items())


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    """The model that the path leads to, if it leads to one."""
    here: object = model
    for part in location:
        owner = _one_model(here)
        if owner is None or isinstance(part, int):
            here = _item(here)
            continue
        field = next((f for name, f in owner.model_fields.items() if part in (name, f.alias)), None)
        here = field.annotation if field else None
    return _one_model(here)


def _item(annotation: object) -> object:
    arguments = [argument for argument in typing.get_args(annotation) if argument is not Ellipsis]
    return arguments[-1] if arguments else None


def _one_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _one_model(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        found = [one for one in map(_one_model, typing.get_args(annotation)) if one]
        return found[0] if found else None
    return None


def parse[M: BaseModel](model: type[M], data: Any, error: type[ApiError] = SpecError, prefix: str = "") -> M:
    """Validate raw data.

    Raises:
        ApiError: of the class `error`, with a problem for each wrong field.
    """
    try:
        return model.model_validate(data)
    except ValidationError as refused:
        raise error(problems_of(refused, model, data, prefix)) from refused
