"""Settings that are dataclasses: their fields give the command-line flags, the Python arguments and the checks of both.

@dataclass(frozen=True)
class Settings:
    frame_fps: float = flag(1.0, "frames a second", metavar="FPS")

    def __post_init__(self):
        check_choices(self)

add_flags(parser.add_argument_group("how"), Settings)
settings = from_args(Settings, parser.parse_args(argv))
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import MISSING, field, fields
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints

from aha.core.files import check_file
from aha.errors import UserError


class IsDataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Settings = TypeVar("Settings", bound=IsDataclass)


def flag(default: Any, help: str, *, kw_only: bool = False, **options: Any) -> Any:
    """A field with a flag of its name. options: `choices`, `metavar`, `low` (the least number that `check_choices` takes);
    MISSING as default: the flag must be given."""
    return field(default=default, kw_only=kw_only, metadata={"help": help, **options})


def add_flags(parser: Any, settings: type, only: Collection[str] | None = None, required: Collection[str] = ()) -> None:
    """One flag for each `flag` field (of those in `only`). A flag that was not given is no attribute of the parsed arguments."""
    types = get_type_hints(settings)
    for entry in fields(settings):
        if "help" not in entry.metadata or (only is not None and entry.name not in only):
            continue
        options = {name: value for name, value in entry.metadata.items() if name != "low"}
        kind = next((t for t in get_args(types[entry.name]) if t is not type(None)), types[entry.name])
        must = entry.name in required or entry.default is MISSING
        if kind is bool:
            options["action"] = "store_true"
        else:
            options |= {"type": finite if kind is float else kind, "required": must}
            if not must and entry.default is not None:
                options["help"] += f" (default {entry.default})"
        parser.add_argument(f"--{entry.name}", default=argparse.SUPPRESS, **options)


def finite(text: str) -> float:
    """The type of a flag that takes a number: NaN and infinity are none."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def positive(text: str) -> float:
    """The type of a flag that takes a finite number above 0."""
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def add_ids(parser: Any, name: str, help: str) -> None:
    """A flag that takes one id or several; `with_dashed_ids` lets them begin with a dash."""
    parser.add_argument(name, nargs="+", action="extend", metavar="ID", help=help)


def with_dashed_ids(parser: argparse.ArgumentParser, name: str, argv: Sequence[str]) -> list[str]:
    """argv with `name ID -ID` as `name=ID name=-ID`: YouTube ids may begin with a dash, which argparse takes for a flag. The list of ids
    ends at the next flag of the parser (written whole, or as NAME=VALUE)."""
    flags = {option for action in parser._actions for option in action.option_strings}
    found: list[str] = []
    inside = False
    for token in argv:
        flag = token.partition("=")[0]
        if flag == name:
            inside = True
            found.append(token)
        elif flag in flags or token == "--":
            inside = False
            found.append(token)
        elif inside and found[-1] == name:  # the first id of the list
            found[-1] = f"{name}={token}"
        else:
            found.append(f"{name}={token}" if inside else token)
    return found


def check_outputs(args: argparse.Namespace, *names: str) -> None:
    """What can be said of the output files that these flags name (aha.core.files.check_file), before the work. Raises UserError, also for
    one that another flag names, whatever its name: the command reads that file, and it would be lost."""
    values = [value for name, value in vars(args).items() if name not in names]
    listed = [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    given = [one for one in listed if isinstance(one, str | os.PathLike)]
    for name in names:
        if (output := getattr(args, name, None)) is not None:
            check_file(output, given)


def from_args(settings: type[Settings], args: argparse.Namespace, **others: Any) -> Settings:
    """The settings of the flags that were given; `others` are set as they are."""
    given = {entry.name: getattr(args, entry.name) for entry in fields(settings) if hasattr(args, entry.name)}
    return settings(**{**given, **others})


def check_choices(settings: Any) -> None:
    """Raises UserError for a value that is none of its field's choices, for a number that is not finite, and for one below the field's
    `low`."""
    for entry in fields(settings):
        value, allowed, low = getattr(settings, entry.name), entry.metadata.get("choices"), entry.metadata.get("low")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{entry.name} is {value}; give a finite number.")
        if low is not None and value is not None and value < low:
            raise UserError(f"--{entry.name} is {value}; give at least {low}.")
        if allowed is not None and value is not None and value not in allowed:
            raise UserError(f"--{entry.name} {value} is none of {', '.join(allowed)}.")
