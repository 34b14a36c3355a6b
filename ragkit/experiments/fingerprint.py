"""What a value is, as a key: two values with the same identity do the same thing.

An experiment keeps what it has computed under the identity of everything that it depends on, so an
identity must change whenever the result could. It is made of values (a dataclass's fields) and of code:

- ragkit's own code counts by its syntax tree, docstrings left out, together with the ragkit modules that
  it imports, and with the versions of the packages that these import;
- an installed package counts by its version;
- everything else, such as a function of a notebook, counts by its bytecode and by what it refers to.

An object is what its attributes are, unless it tells itself: by a method ``identity()`` that returns plain values, or,
as an embedder, by its ``fingerprint``. One that wraps another and changes nothing of what that does has a true
``is_transparent`` and is what its ``inner`` is. What cannot be told is refused.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import importlib.util
import math
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragkit.errors import InputError
from ragkit.hashing import hash_values

__all__ = ["code_version", "identity"]

_DOCUMENTED = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Module)
_SETTING = (bool, int, float, str, bytes, Path, tuple, types.NoneType)
_ROOT = Path(__file__).resolve().parents[1]  # the folder of ragkit


def identity(value: Any) -> Any:
    """Return plain values (None, numbers, strings, lists, dicts) that say what a value is.

    Raises:
        InputError: It cannot be told; the message says how to make it tell.
    """
    return _identity(value, ())


def _identity(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or (isinstance(value, bool | int | str) and type(value) in (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if id(value) in above:  # a function that calls itself
        return "recursive"
    inside = (*above, id(value))
    if isinstance(value, bytes):
        return {"bytes": hashlib.blake2b(value, digest_size=16).hexdigest()}
    if isinstance(value, enum.Enum):
        return [_name(type(value)), value.name]
    if isinstance(value, Mapping):
        pairs = [[_identity(k, inside), _identity(v, inside)] for k, v in value.items()]
        return {"mapping": sorted(pairs, key=lambda pair: hash_values(pair[0]))}
    if isinstance(value, set | frozenset):
        return {"set": sorted((_identity(each, inside) for each in value), key=hash_values)}
    if isinstance(value, list | tuple):
        return [_identity(each, inside) for each in value]
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, type):
        return {"type": _name(value), "code": code_version(value)}
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__, "code": _module_version(value.__name__)}
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodType | functools.partial):
        return _function(value, inside)
    if getattr(value, "is_transparent", False) is True:
        return _identity(value.inner, inside)
    if callable(tell := getattr(value, "identity", None)):
        return {"type": _name(type(value)), "code": code_version(type(value)), "is": _identity(tell(), inside)}
    if callable(tell := getattr(value, "fingerprint", None)):
        return _embedder(value, tell)
    if dataclasses.is_dataclass(value):
        fields = {f.name: _identity(getattr(value, f.name), inside) for f in dataclasses.fields(value) if f.compare}
        return {"type": _name(type(value)), "code": code_version(type(value)), "fields": fields}
    if hasattr(value, "__dict__"):
        return {"type": _name(type(value)), "code": code_version(type(value)), "state": _identity(vars(value), inside)}
    raise InputError(
        f"{value!r} does not tell what it depends on, so its results could not be kept. Make {type(value).__name__} a "
        "frozen dataclass, or give it a method identity() that returns everything that its results depend on."
    )


def _embedder(value: Any, fingerprint: Any) -> Any:
    known = {kind: fingerprint(kind) for kind in ("passage", "query")}
    known |= {"name": value.name, "max_tokens": value.max_tokens, "languages": sorted(value.languages or ())}
    if known["passage"] is None:  # it is its code, and what it is set to
        inner = getattr(value, "inner", value)
        known["code"] = code_version(type(inner))
        names = [f.name for f in dataclasses.fields(inner)] if dataclasses.is_dataclass(inner) else vars(inner)
        settings = {name: getattr(inner, name) for name in names}
        known["settings"] = {k: _identity(v, ()) for k, v in settings.items() if isinstance(v, _SETTING)}
    return {"embedder": known}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# ----------------------------------------------------------------------------------------- code


def code_version(thing: type | types.FunctionType) -> str:
    """Return what the code of a class or function is, as a hash or a version.

    Raises:
        InputError: It refers to something that cannot be told.
    """
    version = _module_version(thing.__module__)
    if version is not None:
        return version
    if isinstance(thing, type):
        return _class_version(thing)
    return hash_values(_function(thing, ()))


@functools.cache
def _module_version(name: str) -> str | None:
    """Return the version of a module of ragkit, of an installed package or of Python; None for a user's own."""
    package = name.partition(".")[0]
    if package == "ragkit":
        return hash_values(_ragkit_modules(name.partition(".")[2]))
    if (package in sys.stdlib_module_names and package != "__main__") or package == "builtins":
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    return _installed(package)


def _installed(package: str) -> str | None:
    names = _distributions().get(package, ())
    return ", ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in names)) or None


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    found = importlib.metadata.packages_distributions()
    return {name: tuple(sorted(set(distributions))) for name, distributions in found.items()}


def _ragkit_modules(module: str) -> dict[str, Any]:
    """What a module of ragkit is made of: its own tree and that of every ragkit module below it; other packages."""
    seen: dict[str, Any] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name in ("", "errors"):  # what an error says changes no result
            continue
        seen[name], ragkit, others = _parsed(name)
        waiting += ragkit
        for other in others:
            if other not in sys.stdlib_module_names:
                seen[f"{other} (package)"] = _installed(other)
    return seen


@functools.cache
def _parsed(module: str) -> tuple[str, frozenset[str], frozenset[str]]:
    """Return (hash of the tree, ragkit modules imported, packages imported)."""
    path = _file_of(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ragkit: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.partition(".")[2]
            is_package = node.module.partition(".")[0] == "ragkit" and not _file_of(package).is_file()
            names = [f"{node.module}.{a.name}" for a in node.names] if is_package else [node.module]
        elif isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        for name in names:
            package, _, rest = name.partition(".")
            ragkit |= {rest} if package == "ragkit" else set()
            others |= {package} if package not in ("ragkit", "__future__") else set()
    text = ast.dump(tree)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), frozenset(ragkit), frozenset(others)


def _file_of(module: str) -> Path:
    """The file of a module of ragkit; packages are none, so that what a package lists is no part of a key."""
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py")


def _class_version(kind: type) -> str:
    """The methods and plain attributes of a user's class, and of the classes that it is made from."""
    parts: dict[str, Any] = {}
    for base in kind.__mro__:
        if (version := _module_version(base.__module__)) is not None:
            parts[_name(base)] = version
            continue
        for name, attribute in sorted(vars(base).items()):
            plain = getattr(attribute, "fget", None) or getattr(attribute, "func", None) or attribute
            plain = getattr(plain, "__func__", plain)  # a static or class method
            if isinstance(plain, types.FunctionType):
                # What dataclass generates (__init__, __eq__, ...) follows from the fields.
                if plain.__code__.co_filename != "<string>":
                    parts[f"{_name(base)}.{name}"] = _function(plain, (id(kind),))
            elif not (name.startswith("__") or isinstance(plain, types.MemberDescriptorType)):
                parts[f"{_name(base)}.{name}"] = _identity(plain, (id(kind),))
    return hash_values(parts)


def _function(function: Any, above: tuple[int, ...]) -> Any:
    if isinstance(function, functools.partial):
        return {"partial": [_identity(part, above) for part in (function.func, function.args, function.keywords)]}
    if isinstance(function, types.MethodType):
        return {"method": function.__name__, "of": _identity(function.__self__, above)}
    if (version := _module_version(function.__module__ or "builtins")) is not None:
        return {"function": f"{function.__module__}.{function.__qualname__}", "code": version}
    above = (*above, id(function))
    known = function.__globals__
    used = sorted(name for name in _names(function.__code__) if name in known)
    return {
        "function": function.__qualname__,
        "code": _bytecode(function.__code__),
        "defaults": _identity([function.__defaults__, function.__kwdefaults__], above),
        "closure": [_cell(cell, above) for cell in function.__closure__ or ()],
        "globals": {name: _identity(known[name], above) for name in used},
    }


def _cell(cell: types.CellType, above: tuple[int, ...]) -> Any:
    try:
        return _identity(cell.cell_contents, above)
    except ValueError:  # not filled yet
        return None


def _bytecode(code: types.CodeType) -> Any:
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return [version, hashlib.blake2b(code.co_code).hexdigest(), constants, list(code.co_names), list(code.co_varnames)]


def _names(code: types.CodeType) -> set[str]:
    """The names that a function may look up outside, those of functions inside it included."""
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, types.CodeType)))
