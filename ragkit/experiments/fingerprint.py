"""What a value is, as a key: two values with the same identity do the same thing.

An experiment keeps what it has computed under the identity of everything that it depends on, so an
identity must change whenever the result could, and should not change otherwise. It is made of values (a dataclass's
fields) and of code:

- ragkit's own code counts by the source of what is used and of all that this refers to
  (`ragkit.experiments.source_code`), and by the versions of the packages that this source uses;
- an installed package counts by its version, unless it is installed from a folder that is being edited;
- everything else, such as a function of a notebook, counts by its bytecode and by what it refers to.

An object is what its attributes are, unless it says itself what it is: by a method ``identity()`` that returns plain
values, or, as an embedder, by its ``fingerprint``. One that wraps another and changes nothing of what that does has a
true ``is_transparent`` and is what its ``inner`` is. What has no identity is refused.
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
_DYNAMIC = {"globals", "eval", "exec"}  # what reaches names that are written nowhere
_HAS_DOCSTRING = 0x4000000  # of a code object, from Python 3.13 on


def identity(value: Any) -> Any:
    """Return plain values (None, numbers, strings, lists, dicts) that say what a value is.

    Raises:
        InputError: It has no identity; the message says how to give it one.
    """
    return _Identities().of(value)


def code_version(thing: type | Callable[..., Any]) -> str:
    """Return what the code of a class or function is, as a hash or a version.

    Raises:
        InputError: It refers to something that has no identity.
    """
    return _Identities().code(thing)


def is_own(value: Any) -> bool:
    """Tell whether a value is of one of ragkit's own classes."""
    return type(value).__module__.partition(".")[0] == "ragkit"


class _Identities:
    """The identities of one value and of all that it refers to: each function, class and module is looked at once."""

    def __init__(self) -> None:
        self._within: list[int] = []  # what is being looked at: a function may call itself
        self._known: dict[int, tuple[Any, Any]] = {}  # id -> what has it, so that it keeps it, and its identity

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
        if callable(said := getattr(value, "identity", None)):
            return {**kind, "is": self.of(said())}
        if callable(said := getattr(value, "fingerprint", None)):
            return self._embedder(value, said)
        if dataclasses.is_dataclass(value):
            fields = {f.name: self.of(getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare}
            return {**kind, "fields": fields}
        if hasattr(value, "__dict__"):
            return {**kind, "state": self.of(vars(value))}
        raise InputError(
            f"{value!r} does not tell what it depends on, so its results could not be kept. Make "
            f"{type(value).__name__} a frozen dataclass, or give it a method identity() that returns everything that "
            "its results depend on."
        )

    def _embedder(self, value: Any, fingerprint: Any) -> Any:
        known = {kind: fingerprint(kind) for kind in ("passage", "query")}
        known |= {"name": value.name, "max_tokens": value.max_tokens, "languages": sorted(value.languages or ())}
        if known["passage"] is None:  # it is its code, and what it is set to
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
        """The methods and plain attributes of a user's class, and of the classes that it is made from."""
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
        made = {}  # where it was made
        if isinstance(function, types.FunctionType):
            made = {
                "defaults": self.of([function.__defaults__, function.__kwdefaults__]),
                "closure": [self._captured(cell) for cell in function.__closure__ or ()],
            }
        top = function.__qualname__.partition(".")[0]
        if (version := _version(function.__module__ or "builtins", top)) is not None:
            return {"function": f"{function.__module__}.{function.__qualname__}", "code": version, **made}
        used = dict(_used(function.__code__, function.__globals__))
        found = {name: self.of(value) for name, value in sorted(used.items())}
        found |= self._any_of(_looked_up(function.__code__, function.__globals__))
        return {"function": function.__qualname__, "code": _bytecode(function.__code__), "uses": found, **made}

    def _captured(self, cell: types.CellType) -> Any:
        try:
            return self.of(cell.cell_contents)
        except ValueError:  # not filled yet
            return None

    def _module(self, module: types.ModuleType) -> Any:
        """All of a module: it is used in a way that does not show which part of it."""
        if (version := _version(module.__name__, ALL)) is not None:
            return version
        source = getattr(module, "__file__", None)
        text = Path(source).read_text(encoding="utf-8") if source and source.endswith(".py") else ""
        return [hash_values(ast.dump(without_docstrings(ast.parse(text)))), self._any_of(vars(module))]

    def _any_of(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """What names that may be used stand for, as far as that is code or a setting."""
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


# ------------------------------------------------------------------------------------- a user's code


def _used(code: types.CodeType, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a function refers to outside itself, by name; of a module the attributes that it takes."""
    steps = list(dis.get_instructions(code))
    for at, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in known:
            yield _taken(step.argval, known[step.argval], steps[at + 1 :])
        elif step.opname == "IMPORT_NAME":
            level, names = steps[at - 2].argval, steps[at - 1].argval
            package = str(known.get("__package__") or known.get("__name__", "").rpartition(".")[0])
            yield from _imported("." * level + str(step.argval), names or (), package)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _used(constant, known)


def _looked_up(code: types.CodeType, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a function may look up by ``globals()["name"]``: all that is known, if it is not written there which."""
    found: dict[str, Any] = {}
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("PRECALL", "PUSH_NULL")]
    for at, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in _DYNAMIC:
            name = steps[at + 2 : at + 3]
            if step.argval != "globals" or not name or name[0].opname != "LOAD_CONST":
                history = {each for each in known if each.startswith("_i") or each in ("In", "Out")}  # IPython's
                return {each: value for each, value in known.items() if each not in history}
            found |= {each: value for each, value in known.items() if each == name[0].argval}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _looked_up(constant, known)
    return found


def _taken(name: str, value: Any, following: Sequence[dis.Instruction]) -> tuple[str, Any]:
    for step in following:
        if not isinstance(value, types.ModuleType) or step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        if _is_version(value.__name__) or not hasattr(value, step.argval):
            break
        name, value = f"{name}.{step.argval}", getattr(value, step.argval)
    return name, value


def _imported(name: str, attributes: Sequence[str], package: str) -> Iterator[tuple[str, Any]]:
    """What an import within a function gives. A package that counts by its version is not imported for it."""
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
    """The constants of a function, but for its docstring, which is the first one."""
    first = code.co_consts[:1]
    if sys.version_info >= (3, 13):
        has_docstring = bool(code.co_flags & _HAS_DOCSTRING)
    else:  # without one, the first constant is None
        is_function = bool(code.co_flags & 0x1) and not code.co_name.startswith("<")
        has_docstring = is_function and bool(first) and isinstance(first[0], str)
    return (None, *code.co_consts[1:]) if has_docstring else code.co_consts


# ------------------------------------------------------------------------------------- versions


def _version(module: str, name: str) -> str | None:
    """Return the version of what is not a user's own: ragkit's code, an installed package, Python; else None."""
    package = module.partition(".")[0]
    if package == "ragkit":
        code = dependencies(module, name)
        return hash_values(code.digest, {each: _installed(each) for each in sorted(code.packages)})
    if (package in sys.stdlib_module_names and package != "__main__") or package == "builtins":
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    return _installed(package)


def _is_version(module: str) -> bool:
    """Whether a module counts by the version of its package alone."""
    return module.partition(".")[0] != "ragkit" and _version(module, ALL) is not None


@functools.cache
def _installed(package: str) -> str | None:
    """The versions of what gives a package; None if there is none, or if its code changes under one version."""
    names = _distributions().get(package, ())
    if any(_is_edited(name, package) for name in names):
        return None
    return ", ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in names)) or None


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    found = importlib.metadata.packages_distributions()
    return {name: tuple(sorted(set(distributions))) for name, distributions in found.items()}


def _is_edited(distribution: str, package: str) -> bool:
    """Whether it was installed with ``pip install -e``, or another package of the same name is in its place."""
    installed = importlib.metadata.distribution(distribution)
    said = installed.read_text("direct_url.json")
    if said and json.loads(said).get("dir_info", {}).get("editable"):
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    folder = Path(str(installed.locate_file("")))
    return file is not None and not (
        Path(file).is_relative_to(folder) or Path(file).resolve().is_relative_to(folder.resolve())
    )
