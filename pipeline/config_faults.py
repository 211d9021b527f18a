"""From plain values to a validated config, or to words on each fault that no secret stands in."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError
from pipeline.uris import without_credentials

MESSAGE_CHARS_MAX = 1000
"""Of what is said of one setting."""

_Config = TypeVar("_Config", bound=BaseModel)


def validated(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """The config of a kind of job. Raises `ConfigError` with one line per fault."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explain(kind, dict(fault)) for fault in error.errors(include_url=False)]
        raise ConfigError("the config has " + str(len(lines)) + " fault(s):\n  " + "\n  ".join(lines)) from None


class _Shown(reprlib.Repr):
    """Values as in Python, cut where they are long or nested, so that a message is bounded; without secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = 400

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(without_credentials(x), level)


def _explain(kind: type[BaseModel], fault: dict[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return _explain_unknown(kind, [str(part) for part in fault["loc"]])
    # A union's members stand in the place as well, under names that mean nothing to people.
    name = ".".join(str(part) for part in fault["loc"] if re.fullmatch(r"\w+", str(part)))
    if fault["type"] == "missing":
        return f"{name}: is required"
    message = without_credentials(fault["msg"].removeprefix("Value error, "))[:MESSAGE_CHARS_MAX]
    if not name:
        return message
    return f"{name}: found {_Shown().repr(fault['input'])}; {message}"


def _explain_unknown(kind: type[BaseModel], location: Sequence[str]) -> str:
    group = kind
    for part in location[:-1]:
        annotation = group.model_fields[part].annotation
        assert isinstance(annotation, type)
        group = annotation
    known = sorted(group.model_fields)
    near = difflib.get_close_matches(location[-1].replace("-", "_"), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{_shown_name('.'.join(location))}: no such setting; {hint}"


def _shown_name(name: str) -> str:
    """A setting's name as it was written, in quotes where it is none that a setting could have."""
    return name if re.fullmatch(r"[\w.-]{1,100}", name) else _Shown().repr(name)
