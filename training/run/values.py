"""Which values the keys of a recipe may have. Each field declares them beside its default; `Section` checks them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

ALLOWED = "allowed"


@dataclass(frozen=True)
class Interval:
    """Numbers, written as in mathematics: "(0, 1]" is without 0 and with 1."""

    text: str

    def problem(self, value: float) -> str:
        """What is wrong with a number; "" if it is inside. NaN is outside of every interval."""
        low, high = map(float, self.text[1:-1].split(","))
        if low < value < high or (value == low and "[" in self.text) or (value == high and "]" in self.text):
            return ""
        if value <= low and math.isinf(high):
            return f"is below {low:g}" if "[" in self.text else f"is not above {low:g}"
        return f"is outside {self.text}"


@dataclass(frozen=True)
class Words:
    """Some known words."""

    known: tuple[str, ...]

    def problem(self, value: str) -> str:
        return "" if value in self.known else f"is unknown; known: {', '.join(self.known)}"


def within(interval: str, default: Any) -> Any:
    """A dataclass field whose numbers, alone or in a list or dict, lie in an interval; None is allowed as it is.
    `default` is a value or a function that makes one."""
    kept = {"default_factory": default} if callable(default) else {"default": default}
    return field(**kept, metadata={ALLOWED: Interval(interval)})


def one_of(default: str, *others: str) -> Any:
    """A dataclass field that is one of these words."""
    return field(default=default, metadata={ALLOWED: Words((default, *others))})


class Section:
    """A part of a recipe: a dataclass. Raises ValueError for a value that its field does not allow."""

    def __post_init__(self):
        check_values(type(self), vars(self))


def check_values(kind: type, values: Mapping[str, Any], path: str = "") -> None:
    """Raises ValueError for the first value that the fields of `kind`, a dataclass, do not allow; it names the key,
    after `path`."""
    for one in dataclasses.fields(kind):
        allowed = one.metadata.get(ALLOWED)
        for name, value in leaves({path + one.name: values.get(one.name)}) if allowed else ():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                problem = "" if inner in (None, MISSING) else allowed.problem(inner)
                if problem:
                    raise ValueError(f"recipe, {name}: {inner} {problem}")


def leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested dicts as ("a.b", value)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
