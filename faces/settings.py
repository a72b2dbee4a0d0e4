"""Settings that come from a file: every section, key, type and bound is checked before anything runs.

A section is a dataclass; ``setting`` declares a key with its default and its bounds.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

Section = TypeVar("Section")


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or impossible; the message says which, where, and what would do."""


def setting(default: Any = MISSING, *, least: float | None = None, below: float | None = None, choices=None) -> Any:
    """A key of a section.

    Parameters
    ----------
    default : of the key; without one it must be given.
    least : the smallest value that is possible.
    below : what the value must stay below.
    choices : the values that there are.
    """
    return field(default=default, metadata={"least": least, "below": below, "choices": choices})


def section(kind: type[Section], given: Mapping[str, Any] | None, *, name: str, where: str = "") -> Section:
    """One section, checked.

    Parameters
    ----------
    kind : its dataclass.
    given : key -> value, as read.
    name, where : of the section and of the place that it was read from, for messages.

    Raises
    ------
    SettingsError : a key is unknown or missing, or its value is of the wrong type or out of bounds.
    """
    place = f"{where}: {name}" if where else name
    if not isinstance(given, Mapping):
        raise SettingsError(f"{place} must be a section of keys and values, not {given!r}")
    known, types = {one.name: one for one in fields(kind)}, get_type_hints(kind)
    for key in given:
        if key not in known:
            raise SettingsError(f"{place}.{key} is not known{_meant(key, known)}; there are {', '.join(known)}")
    values = {}
    for key, about in known.items():
        if key not in given:
            if about.default is MISSING:
                raise SettingsError(f"{place}.{key} is missing")
            continue
        values[key] = _checked(given[key], types[key], about.metadata, f"{place}.{key}")
    return kind(**values)


def _checked(value: Any, kind: type, bounds: Mapping[str, Any], place: str) -> Any:
    if kind is float and isinstance(value, str):
        # YAML reads 1e-4, without a point, as text.
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SettingsError(f"{place} must be {_NAMES.get(kind, kind.__name__)}, not {value!r}")
    choices, least, below = bounds.get("choices"), bounds.get("least"), bounds.get("below")
    if choices is not None and value not in choices:
        raise SettingsError(f"{place} must be one of {', '.join(map(str, choices))}, not {value!r}")
    # Written so that nan is refused too.
    if least is not None and not value >= least:
        raise SettingsError(f"{place} must be {least} or more, not {value}")
    if below is not None and not value < below:
        raise SettingsError(f"{place} must be below {below}, not {value}")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _meant(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key), known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def read(path: str | os.PathLike, kinds: Mapping[str, type]) -> dict[str, Any]:
    """All sections of a YAML file, checked; sections that are not there get their defaults.

    Parameters
    ----------
    kinds : section -> its dataclass.

    Raises
    ------
    SettingsError : the file cannot be read, is not YAML, or has a section or key that it should not have; the message
        names the file and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) or {}
        tree = yaml.compose(text)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise SettingsError(f"{path} must hold sections, {', '.join(kinds)}")
    lines = _lines(tree)
    for name in content:
        if name not in kinds:
            place = f"{path}, line {lines.get((name,), 1)}"
            raise SettingsError(f"{place}: {name} is not known{_meant(name, kinds)}; there are {', '.join(kinds)}")
    sections = {}
    for name, kind in kinds.items():
        try:
            sections[name] = section(kind, content.get(name, {}), name=name)
        except SettingsError as error:
            # The message begins with section.key, which has a line.
            key = str(error).split(" ", 1)[0].partition(".")[2]
            line = lines.get((name, key)) or lines.get((name,), 1)
            raise SettingsError(f"{path}, line {line}: {error}") from None
    return sections


def _lines(tree: yaml.Node | None) -> dict[tuple[str, ...], int]:
    """Where each section and each of its keys stands: (section,) and (section, key) -> line, from 1."""
    found: dict[tuple[str, ...], int] = {}
    for name, content in tree.value if isinstance(tree, yaml.MappingNode) else ():
        found[(name.value,)] = name.start_mark.line + 1
        for key, _ in content.value if isinstance(content, yaml.MappingNode) else ():
            found[(name.value, key.value)] = key.start_mark.line + 1
    return found
