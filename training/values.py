"""Which values the keys of a recipe may have, said beside their defaults and checked for all of them alike."""

import dataclasses
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
        """What is wrong with a number; "" for one inside. NaN is outside of all."""
        low, high = map(float, self.text[1:-1].split(","))
        if value < low and self.text.startswith("["):
            return f"is below {low:g}"
        if value <= low and self.text.startswith("("):
            return f"is not above {low:g}"
        inside = low <= value < high or (value == high and self.text.endswith("]"))
        return "" if inside else f"is outside {self.text}"


@dataclass(frozen=True)
class Words:
    """Some known words."""

    known: tuple[str, ...]

    def problem(self, value: str) -> str:
        return "" if value in self.known else f"is unknown; known: {', '.join(self.known)}"


def within(interval: str, default: Any) -> Any:
    """A dataclass field whose numbers, alone or in a list or dict, lie in an interval; None stays None. `default` may
    be what makes one."""
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
        for name, value in leaves(values.get(one.name), path + one.name) if allowed else ():
            problem = "" if value in (None, MISSING) else allowed.problem(value)
            if problem:
                raise ValueError(f"recipe, {name}: {value} {problem}")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of all that is neither dict nor list; each in a list has the key of the list."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from leaves(inner, name)
    else:
        yield name, value
