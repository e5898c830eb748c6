"""Dataclasses that check themselves with pydantic and report the first error in one sentence.

Numbers, texts and booleans are not converted into one another. An integer is accepted as a float, a list as a tuple.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.functional_validators import AfterValidator
from pydantic_core import ErrorDetails, PydanticCustomError

__all__ = [
    "Count",
    "Finite",
    "Flag",
    "Group",
    "Natural",
    "NotNegative",
    "Positive",
    "Reduction",
    "Share",
    "Text",
    "checked",
    "describe",
    "expected",
    "flatten",
    "from_mapping",
    "nearest",
    "plain",
]

T = TypeVar("T")


def expected(what: str) -> PydanticCustomError:
    """Returns the error for a value that should be ``what``: "NAME must be WHAT, got VALUE"."""
    return PydanticCustomError("expected", "{what}", {"what": what})


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise expected("between 0 and 1")
    return value


def _below_one(value: float) -> float:
    if not 0 <= value < 1:
        raise expected("from 0 to below 1")
    return value


def _reduction(value: Any) -> Any:
    """Checks tokens merged per block: a whole number, a share, or one whole number per block."""
    if isinstance(value, list | tuple):
        if all(hasattr(item, "__index__") and not isinstance(item, bool) for item in value):
            return tuple(operator.index(item) for item in value)
    elif isinstance(value, float):
        return value
    elif hasattr(value, "__index__") and not isinstance(value, bool):
        return operator.index(value)
    raise expected("a whole number or a number or a list of whole numbers")


Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Natural = Annotated[int, Strict(), Field(ge=0)]
Count = Annotated[int, Strict(), Field(ge=1)]
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Strict(), AfterValidator(_share)]
ShareBelowOne = Annotated[Finite, AfterValidator(_below_one)]
Reduction = Annotated[int | float | tuple[int, ...], BeforeValidator(_reduction)]
Group = BeforeValidator(lambda value: {} if value is None else value)
"""A settings group of a YAML file; an empty one gets the default settings."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def checked(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass that checks its fields.

    ``cls(...)`` raises TypeError for a wrong type or an unknown name, and ValueError for a value out of range. The
    message is :func:`describe`'s. :func:`from_mapping` reads nested mappings.
    """
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    check: Callable[..., None] = made.__init__

    @functools.wraps(check)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            kind = error.errors()[0]["type"]
            refusal = TypeError if kind.endswith("_type") or kind in _UNKNOWN else ValueError
            raise refusal(describe(error, type(self))) from None

    made.__init__ = __init__
    return made


def from_mapping(cls: type[T], values: Any, prefix: str = "") -> T:
    """Builds a checked dataclass from nested mappings.

    Args:
        cls: made by :func:`checked`. values: a mapping.
        prefix: put before every name in the message, such as "model.options.".

    Raises:
        ValueError: a setting is wrong. The message is one sentence that names it.
    """
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        raise ValueError(describe(error, cls, prefix)) from None


def plain(value: Any) -> Any:
    """Returns a checked dataclass as mappings and lists, ready for YAML and JSON."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def flatten(value: Any) -> dict[str, Any]:
    """Returns a checked dataclass as plain values by dotted keys, such as "optim.lr"."""
    flat: dict[str, Any] = {}

    def walk(tree: Mapping[str, Any], prefix: str) -> None:
        for key, item in tree.items():
            if isinstance(item, Mapping) and item:
                walk(item, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = item

    walk(plain(value), "")
    return flat


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "a group of settings",
    "dict_type": "a group of settings",
    "finite_number": "finite",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "a text",
    "string_too_short": "a name",
    "tuple_type": "a list",
}


def describe(error: ValidationError, cls: type, prefix: str = "") -> str:
    """Returns one sentence on the first error."""
    detail = error.errors(include_url=False)[0]
    path = [str(part) for part in detail["loc"] if not isinstance(part, int)]
    name = prefix + ".".join(path) if path else prefix.rstrip(".") or "the configuration"
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind in _UNKNOWN:
        return f"{name} is not a setting; {nearest(path[-1], _names(cls, path[:-1]))}"
    if kind == "value_error":  # of a check across fields, which is a sentence of its own
        return f"{prefix}{context['error']}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"]) or re.findall(r"\d+", context["expected"])
        return f"{name} must be one of {', '.join(choices)}, got {value!r:.80}; {nearest(str(value)[:80], choices)}"
    return f"{name} must be {_limit(detail)}, got {value!r:.80}."


def _limit(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "greater_than":
        return f"above {context['gt']:g}"
    if kind == "greater_than_equal":
        return f"{context['ge']:g} or more"
    if kind == "less_than_equal":
        return f"{context['le']:g} or less"
    return _EXPECTED.get(kind, detail["msg"])


def _names(cls: Any, path: Sequence[str]) -> list[str]:
    """Returns the field names of a nested dataclass."""
    for part in path:
        cls = cls.__pydantic_fields__[part].annotation
    return list(cls.__pydantic_fields__)


def nearest(word: str, known: Sequence[str]) -> str:
    """Returns a hint: the known word most like ``word``, or all of them if none is."""
    match = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else "known are " + ", ".join(known) + "."
