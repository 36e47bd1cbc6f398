"""What has to happen to the text of a VNN-LIB 2.0 query around the `vnnlib` parser.

The parser refuses some legal text (integer literals next to real variables, `initialized`),
reports errors as JSON, and exhausts the C++ stack on deep nesting. All of that is dealt with here.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from verifier.errors import SpecError

MAX_DEPTH = 5000

_COMMENT = re.compile(r'"[^"\n]*"|;[^\n]*')
_INTEGER = re.compile(r"(?<=[\s(])-?\d+(?=[\s)])")
_INDEX_OR_INTEGER = re.compile(r"\[[^\]]*\]|(?<=[\s(])-?\d+(?=[\s)])")
_INITIALIZED = re.compile(r"\]\s+initialized\s*\)")
_NETWORK = re.compile(r"\(\s*declare-network\s+(\w+)(?:\s*\(\s*equal-to\s+(\w+)\s*\))?")
_HIDDEN = re.compile(r'\(\s*declare-hidden\s+\S+\s+\S+\s*\[[^\]]*\]\s*"([^"]*)"')


def without_comments(text: str) -> str:
    """The text without `;` comments; line numbers and quoted names stay."""
    return _COMMENT.sub(lambda m: m[0] if m[0][0] == '"' else "", text) if ";" in text else text


def parse_tree(text: str) -> Any:
    """The typed tree of the `vnnlib` package.

    Raises:
        SpecError: syntax, scoping or typing errors, with their line; nesting beyond MAX_DEPTH.
    """
    import vnnlib

    text = without_comments(text)
    if "\0" in text:
        raise SpecError("the file holds a NUL character")
    _check_depth(text)
    initialized = _INITIALIZED.search(text)
    if initialized:
        line = text.count("\n", 0, initialized.start()) + 1
        raise SpecError(f"line {line}: `initialized` inputs are not supported; declare the input without it")
    start = text.find("(assert")
    if start >= 0 and _INTEGER.search(text, start):
        text = text[:start] + _INDEX_OR_INTEGER.sub(lambda m: m[0] if m[0][0] == "[" else m[0] + ".0", text[start:])
    try:
        return vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise SpecError(_message(str(error))) from error
    except (IndexError, OverflowError) as error:  # how std::stod's out_of_range arrives
        raise SpecError("a number is outside the range of normal doubles") from error
    except (ValueError, RuntimeError) as error:
        raise SpecError(f"the VNN-LIB 2.0 parser refused the text: {error}") from error


def _check_depth(text: str) -> None:
    characters = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
    step = (characters == ord("(")).astype(np.int8) - (characters == ord(")")).astype(np.int8)
    depth = int(np.cumsum(step, dtype=np.int64).max(initial=0))
    if depth > MAX_DEPTH:
        raise SpecError(f"parentheses are nested {depth} deep; the limit is {MAX_DEPTH}")


def _message(text: str) -> str:
    """One line from the parser's JSON report or its plain sentence."""
    try:
        report = json.loads(text)
        first = report["errors"][0]
        more = f" (and {len(report['errors']) - 1} more errors)" if len(report["errors"]) > 1 else ""
        return f"line {first['line']}: {first['message']} '{first['offendingSymbol']}': {first['hint']}{more}"
    except (ValueError, KeyError, IndexError, TypeError):
        at = re.search(r"at line (\d+)", text)
        where = f"line {at[1]}: " if at else ""
        return f"{where}{text.strip().splitlines()[0] if text.strip() else 'syntax error'}"


def hidden_tensors(text: str) -> dict[str, tuple[str, ...]]:
    """Network name -> ONNX tensors its property declares as hidden; `equal-to` networks add to their original.

    An importer needs the names before the query can be bound to the graph.
    """
    text = without_comments(text)
    found: dict[str, dict[str, None]] = {}
    alias: dict[str, str] = {}
    starts = list(_NETWORK.finditer(text))
    for match, following in zip(starts, [*starts[1:], None], strict=True):
        name, original = match[1], match[2]
        alias[name] = alias.get(original, original) if original else name
        end = following.start() if following else len(text)
        tensors = found.setdefault(alias[name], {})
        tensors.update(dict.fromkeys(_HIDDEN.findall(text[match.end() : end])))
    return {name: tuple(tensors) for name, tensors in found.items() if tensors}
