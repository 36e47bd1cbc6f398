"""`--settings FILE`: options of an analysis kept in a TOML file, under their long names."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from typing import Any

from verifier.errors import SpecError

#: Option -> what its value must be.
KINDS: dict[str, tuple[type, ...]] = {
    "timeout": (int, float),
    "threads": (int,),
    "seed": (int,),
    "device": (str,),
    "soundness": (str,),
    "effort": (str,),
    "engine": (str,),
}


class SettingsFile(argparse.Action):
    """Takes over a file's values; options that come after it on the command line win."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        known = {action.dest: action for action in parser._actions}
        for name, value in read(str(values)).items():
            if name not in known:
                raise SpecError(f"{values}: '{name}' is not an option of this command")
            setattr(namespace, name, _checked(str(values), name, value, known[name]))


def read(path: str) -> dict[str, Any]:
    """The names and values of a settings file.

    Raises:
        SpecError: not TOML, an unknown name, or a value of another kind than expected.
    """
    with open(path, "rb") as file:
        try:
            found = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SpecError(f"{path}: not a TOML file: {error}") from None
    for name, value in found.items():
        if name not in KINDS:
            raise SpecError(f"{path}: unknown setting '{name}'; expected one of {', '.join(KINDS)}")
        if not isinstance(value, KINDS[name]) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in KINDS[name])
            raise SpecError(f"{path}: {name}: expected {expected}, got {value!r}")
    return found


def _checked(path: str, name: str, value: Any, action: argparse.Action) -> Any:
    """As the command line would take it."""
    if action.choices is not None and value not in action.choices:
        raise SpecError(f"{path}: {name}: expected one of {', '.join(action.choices)}, got '{value}'")
    if callable(action.type):
        try:
            return action.type(str(value))
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise SpecError(f"{path}: {name}: {error}") from None
    return value
