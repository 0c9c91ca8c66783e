"""MODULE:CALL on the command line: a function of the user's with literal arguments."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def evaluate_call_spec(expression: str) -> Any:
    """What MODULE:CALL gives.

    Raises
    ------
    ValueError
        If it cannot be read, or the call fails.
    """
    where, separator, call = expression.partition(":")
    try:
        tree = ast.parse(call, mode="eval").body if separator and where else None
    except SyntaxError:
        tree = None
    name, arguments = (tree.func, tree) if isinstance(tree, ast.Call) else (tree, None)
    if not isinstance(name, ast.Name):
        raise ValueError(
            f"{expression!r} cannot be read; write MODULE:FUNCTION(name=value, ...), where MODULE "
            "is a module or a .py file"
        )
    try:
        positional = [ast.literal_eval(each) for each in arguments.args] if arguments else []
        keywords = (
            {str(each.arg): ast.literal_eval(each.value) for each in arguments.keywords}
            if arguments
            else {}
        )
    except ValueError:
        raise ValueError(
            f"the arguments in {expression!r} must be literal numbers, strings, lists or dicts"
        ) from None
    function = getattr(_module(where), name.id, None)
    if not callable(function):
        raise ValueError(f"{where} has no function or class {name.id}")
    try:
        return function(*positional, **keywords)
    except Exception as error:
        raise ValueError(f"{call} failed: {type(error).__name__}: {error}") from error


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    if not Path(where).is_file():
        raise FileNotFoundError(f"there is no file {where}")
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
