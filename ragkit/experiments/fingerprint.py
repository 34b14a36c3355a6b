"""Identities of values for cache keys: two values with the same identity behave the same.

An experiment caches a result under the identities of everything that the result depends on. An identity must therefore
change whenever the result could change, and should not change otherwise. It consists of values (such as the fields of
a dataclass) and of code:

- for ragkit's own code, the source of the definition and of everything that it refers to
  (`ragkit.experiments.source_code`), and the versions of the packages that this source uses;
- for an installed package, its version, unless it is an editable install;
- for all other code, such as a function of a notebook, its bytecode and everything that it refers to.

The identity of an object is made of its attributes, unless it defines its own: a method ``identity()`` that returns
plain values, or the ``fingerprint`` of an embedder. A wrapper that does not change behaviour sets ``is_transparent`` to
True and has the identity of its ``inner``. A value without an identity is an error.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragkit.errors import InputError
from ragkit.experiments.source_code import ALL, dependencies, without_docstrings
from ragkit.hashing import hash_values

_SETTING = (bool, int, float, str, bytes, Path, tuple, types.NoneType)
_FUNCTION = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
_CODE = (types.FunctionType, type, types.ModuleType)
_DYNAMIC = {"globals", "eval", "exec"}  # these can use names that do not occur in the code
_HAS_DOCSTRING = 0x4000000  # flag of a code object, since Python 3.13


def identity(value: Any) -> Any:
    """Return the identity of a value as plain values (None, numbers, strings, lists, dicts).

    Raises:
        InputError: The value has no identity; the message says how to define one.
    """
    return _Identities().of(value)


def code_version(thing: type | Callable[..., Any]) -> str:
    """Return a hash of the code of a class or function, or the version of its package.

    Raises:
        InputError: The code refers to a value without an identity.
    """
    return _Identities().code(thing)


def is_own(value: Any) -> bool:
    """Return whether the class of a value is defined in ragkit."""
    return type(value).__module__.partition(".")[0] == "ragkit"


class _Identities:
    """Computes the identity of one value and all that it refers to; each function, class and module is visited once."""

    def __init__(self) -> None:
        self._within: list[int] = []  # ids of the values being visited, to stop recursion
        self._known: dict[
            int, tuple[Any, Any]
        ] = {}  # id -> the value, kept alive so that its id stays unique, and its identity

    def of(self, value: Any) -> Any:
        if value is None or (isinstance(value, bool | int | str) and type(value) in (bool, int, str)):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if id(value) in self._within:
            return "recursive"
        if id(value) in self._known:
            return self._known[id(value)][1]
        self._within.append(id(value))
        try:
            found = self._of(value)
            if isinstance(value, _CODE):
                found = hash_values(found)
                self._known[id(value)] = value, found
            return found
        finally:
            self._within.pop()

    def _of(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return {"bytes": hashlib.blake2b(value, digest_size=16).hexdigest()}
        if isinstance(value, enum.Enum):
            return [_name(type(value)), value.name]
        if isinstance(value, Mapping):
            pairs = [[self.of(k), self.of(v)] for k, v in value.items()]
            return {"mapping": sorted(pairs, key=lambda pair: hash_values(pair[0]))}
        if isinstance(value, set | frozenset):
            return {"set": sorted((self.of(each) for each in value), key=hash_values)}
        if isinstance(value, list | tuple):
            return [self.of(each) for each in value]
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, type):
            return {"type": _name(value), "code": self.code(value)}
        if isinstance(value, types.ModuleType):
            return {"module": value.__name__, "code": self._module(value)}
        if isinstance(value, _FUNCTION):
            return self._function(value)
        if getattr(value, "is_transparent", False) is True:
            return self.of(value.inner)
        kind = {"type": _name(type(value)), "code": self.code(type(value))}
        if callable(method := getattr(value, "identity", None)):
            return {**kind, "is": self.of(method())}
        if callable(method := getattr(value, "fingerprint", None)):
            return self._embedder(value, method)
        if dataclasses.is_dataclass(value):
            fields = {f.name: self.of(getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare}
            return {**kind, "fields": fields}
        if hasattr(value, "__dict__"):
            return {**kind, "state": self.of(vars(value))}
        raise InputError(
            f"{value!r} has no identity, so its results cannot be cached. Make {type(value).__name__} a frozen "
            "dataclass, or give it a method identity() that returns everything that its results depend on."
        )

    def _embedder(self, value: Any, fingerprint: Any) -> Any:
        known = {kind: fingerprint(kind) for kind in ("passage", "query")}
        known |= {"name": value.name, "max_tokens": value.max_tokens, "languages": sorted(value.languages or ())}
        if known["passage"] is None:  # without a fingerprint, its code and settings count
            inner = getattr(value, "inner", value)
            known["code"] = self.code(type(inner))
            names = [f.name for f in dataclasses.fields(inner)] if dataclasses.is_dataclass(inner) else vars(inner)
            settings = {name: getattr(inner, name) for name in names}
            known["settings"] = {k: self.of(v) for k, v in settings.items() if isinstance(v, _SETTING)}
        return {"embedder": known}

    # --------------------------------------------------------------------------------------- code

    def code(self, thing: type | Callable[..., Any]) -> str:
        version = _version(thing.__module__, thing.__qualname__.partition(".")[0])
        if version is not None:
            return version
        return self._class(thing) if isinstance(thing, type) else hash_values(self._function(thing))

    def _class(self, kind: type) -> str:
        """Hash the methods and plain attributes of a user-defined class and of its base classes."""
        parts: dict[str, Any] = {}
        for base in kind.__mro__:
            if (version := _version(base.__module__, base.__qualname__.partition(".")[0])) is not None:
                parts[_name(base)] = version
                continue
            for name, attribute in sorted(vars(base).items()):
                plain = getattr(attribute, "fget", None) or getattr(attribute, "func", None) or attribute
                plain = getattr(plain, "__func__", plain)  # a static or class method
                if isinstance(plain, types.FunctionType):
                    # What dataclass generates (__init__, __eq__, ...) follows from the fields.
                    if plain.__code__.co_filename != "<string>":
                        parts[f"{_name(base)}.{name}"] = self.of(plain)
                elif not (
                    name.startswith("__") or name == "_abc_impl" or isinstance(plain, types.MemberDescriptorType)
                ):
                    parts[f"{_name(base)}.{name}"] = self.of(plain)
        return hash_values(parts)

    def _function(self, function: Any) -> Any:
        if isinstance(function, functools.partial):
            return {"partial": [self.of(part) for part in (function.func, function.args, function.keywords)]}
        if isinstance(function, types.MethodType):
            return {"method": function.__name__, "of": self.of(function.__self__)}
        bound = {}  # default arguments and closure variables
        if isinstance(function, types.FunctionType):
            bound = {
                "defaults": self.of([function.__defaults__, function.__kwdefaults__]),
                "closure": [self._captured(cell) for cell in function.__closure__ or ()],
            }
        top = function.__qualname__.partition(".")[0]
        if (version := _version(function.__module__ or "builtins", top)) is not None:
            return {"function": f"{function.__module__}.{function.__qualname__}", "code": version, **bound}
        used = dict(_used(function.__code__, function.__globals__))
        found = {name: self.of(value) for name, value in sorted(used.items())}
        found |= self._any_of(_looked_up(function.__code__, function.__globals__))
        return {"function": function.__qualname__, "code": _bytecode(function.__code__), "uses": found, **bound}

    def _captured(self, cell: types.CellType) -> Any:
        try:
            return self.of(cell.cell_contents)
        except ValueError:  # the cell is still empty
            return None

    def _module(self, module: types.ModuleType) -> Any:
        """Return the identity of a whole module, for uses that do not show which part of it counts."""
        if (version := _version(module.__name__, ALL)) is not None:
            return version
        source = getattr(module, "__file__", None)
        text = Path(source).read_text(encoding="utf-8") if source and source.endswith(".py") else ""
        return [hash_values(ast.dump(without_docstrings(ast.parse(text)))), self._any_of(vars(module))]

    def _any_of(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return the identities of names that may be used, as far as they are code or settings."""
        found = {}
        for name, value in sorted(names.items()):
            if not name.startswith("__") and isinstance(value, (*_CODE, *_SETTING)):
                try:
                    found[name] = self.of(value)
                except InputError:
                    continue
        return found


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


# --------------------------------------------------------------------------------- user-defined code


def _used(code: types.CodeType, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the global names that a function uses and their values; for modules, the attributes that it uses."""
    steps = list(dis.get_instructions(code))
    for at, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in known:
            yield _resolved(step.argval, known[step.argval], steps[at + 1 :])
        elif step.opname == "IMPORT_NAME":
            level, names = steps[at - 2].argval, steps[at - 1].argval
            package = str(known.get("__package__") or known.get("__name__", "").rpartition(".")[0])
            yield from _imported("." * level + str(step.argval), names or (), package)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _used(constant, known)


def _looked_up(code: types.CodeType, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a function may look up by ``globals()["name"]``: all names, if the name is not a constant."""
    found: dict[str, Any] = {}
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("PRECALL", "PUSH_NULL")]
    for at, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in _DYNAMIC:
            name = steps[at + 2 : at + 3]
            if step.argval != "globals" or not name or name[0].opname != "LOAD_CONST":
                history = {each for each in known if each.startswith("_i") or each in ("In", "Out")}  # of IPython
                return {each: value for each, value in known.items() if each not in history}
            found |= {each: value for each, value in known.items() if each == name[0].argval}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _looked_up(constant, known)
    return found


def _resolved(name: str, value: Any, following: Sequence[dis.Instruction]) -> tuple[str, Any]:
    for step in following:
        if not isinstance(value, types.ModuleType) or step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        if _is_version(value.__name__) or not hasattr(value, step.argval):
            break
        name, value = f"{name}.{step.argval}", getattr(value, step.argval)
    return name, value


def _imported(name: str, attributes: Sequence[str], package: str) -> Iterator[tuple[str, Any]]:
    """Yield what an import inside a function binds. A package that counts by its version is not imported."""
    name = importlib.util.resolve_name(name, package)
    if _is_version(name):
        yield f"import {name}", _version(name, ALL)
        return
    try:
        module = importlib.import_module(name)
    except ImportError:
        yield f"import {name}", None
        return
    if not attributes or "*" in attributes:
        yield f"import {name}", module
    for attribute in attributes:
        if not hasattr(module, attribute) and importlib.util.find_spec(f"{name}.{attribute}") is not None:
            importlib.import_module(f"{name}.{attribute}")
        yield f"import {name}.{attribute}", getattr(module, attribute, None)


def _bytecode(code: types.CodeType) -> Any:
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in _constants(code)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [version, hashlib.blake2b(code.co_code).hexdigest(), constants, list(code.co_names), list(arguments)]


def _constants(code: types.CodeType) -> Sequence[Any]:
    """Return the constants of a function, with None in place of the docstring."""
    first = code.co_consts[:1]
    if sys.version_info >= (3, 13):
        has_docstring = bool(code.co_flags & _HAS_DOCSTRING)
    else:  # without a docstring, the first constant is None
        is_function = bool(code.co_flags & 0x1) and not code.co_name.startswith("<")
        has_docstring = is_function and bool(first) and isinstance(first[0], str)
    return (None, *code.co_consts[1:]) if has_docstring else code.co_consts


# ------------------------------------------------------------------------------------- versions


def _version(module: str, name: str) -> str | None:
    """Return the version of code from ragkit, an installed package or Python; None for user-defined code."""
    package = module.partition(".")[0]
    if package == "ragkit":
        code = dependencies(module, name)
        return hash_values(code.digest, {each: _installed(each) for each in sorted(code.packages)})
    if (package in sys.stdlib_module_names and package != "__main__") or package == "builtins":
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    return _installed(package)


def _is_version(module: str) -> bool:
    """Return whether a module counts only by the version of its package."""
    return module.partition(".")[0] != "ragkit" and _version(module, ALL) is not None


@functools.cache
def _installed(package: str) -> str | None:
    """Return the versions of the distributions that provide a package; None if there are none or one is editable."""
    names = _distributions().get(package, ())
    if any(_is_edited(name, package) for name in names):
        return None
    return ", ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in names)) or None


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    found = importlib.metadata.packages_distributions()
    return {name: tuple(sorted(set(distributions))) for name, distributions in found.items()}


def _is_edited(distribution: str, package: str) -> bool:
    """Return whether a distribution is an editable install, or its package was imported from somewhere else."""
    installed = importlib.metadata.distribution(distribution)
    origin = installed.read_text("direct_url.json")
    if origin and json.loads(origin).get("dir_info", {}).get("editable"):
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    folder = Path(str(installed.locate_file("")))
    return file is not None and not (
        Path(file).is_relative_to(folder) or Path(file).resolve().is_relative_to(folder.resolve())
    )
