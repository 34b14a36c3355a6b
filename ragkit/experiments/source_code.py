"""Static dependencies of a definition in ragkit's source: its syntax tree, and all definitions that it refers to.

A definition is a top-level binding of a module: a function, a class or a constant, with the statements that modify it.
A definition refers to others by the global names in its code, also as attributes of a module (``lexical.tokenize``), by
imports inside functions, base classes, decorators, and the classes in its annotations, which are the types of
arguments. All methods of the requested class and its bases count. Of other classes, a method counts only if code that
counts uses an attribute with its name. Docstrings, comments, the annotations themselves and methods that only display a
value in a notebook (``_repr_html_``) do not affect results and do not count.

Whatever cannot be resolved statically counts in full: a module used as a value, ``globals()``, an attribute with a
computed name, or a name that a module creates on access. Source files are only parsed, never imported or run.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import re
import symtable
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ALL = "*"  # stands for all names in a module

_ROOT = Path(__file__).resolve().parents[1]  # the folder of ragkit
_PACKAGE = "ragkit"

# Modules that do not affect results: error messages, the transport to a model's server, and choices, which are
# resolved before anything is computed.
_NO_RESULT = frozenset({"ragkit.errors", "ragkit.llm.openai", "ragkit.space"})

_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITION = (*_FUNCTION, ast.ClassDef)
_DISPLAY = re.compile(r"_repr_\w+_|_ipython_\w+_")  # methods that notebooks call
_DYNAMIC = frozenset({"globals", "eval", "exec"})
_BY_NAME = frozenset({"getattr", "attrgetter", "methodcaller", "vars"})  # these look up an attribute by a string
_ANY = "*"  # stands for any attribute

_Definition = tuple[str, str]  # a module and a name in it, or a method as "Class.method"
_NameUse = tuple[str, tuple[str, ...]]  # a name and the attributes accessed on it


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The dependencies of a definition.

    Attributes:
        digest: A hash of all source that counts.
        packages: The import names of the third-party packages that this source uses.
    """

    digest: str
    packages: frozenset[str]


@functools.cache
def dependencies(module: str, name: str) -> Dependencies:
    """Return the dependencies of a definition.

    Args:
        module: The full name of a module of ragkit.
        name: A top-level name in it, or `ALL`.
    """
    seen: dict[_Definition, str] = {}
    packages: set[str] = set()
    waiting = [(module, name)]
    requested = set(_with_bases((module, name)))  # all methods of these classes count
    attributes: set[str] = set()
    methods: dict[str, list[_Definition]] = {}  # those found so far, by name
    while waiting:
        at = waiting.pop()
        if at in seen or at[0] in _NO_RESULT:
            continue
        source = _source(*at)
        seen[at] = source.text
        packages |= source.packages
        waiting += source.refers_to
        for method, place in source.methods.items():
            is_used = at in requested or method in attributes or _ANY in attributes
            waiting += [place] if is_used else []
            methods.setdefault(method, []).append(place)
        for attribute in source.attributes - attributes:
            waiting += methods.get(attribute, []) if attribute != _ANY else itertools.chain(*methods.values())
        attributes |= source.attributes
    text = repr(sorted(seen.items()))
    return Dependencies(hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), frozenset(packages))


def _with_bases(kind: _Definition) -> Iterator[_Definition]:
    if kind[0] not in _NO_RESULT:
        yield kind
        for base in _source(*kind).bases:
            yield from _with_bases(base)


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove the docstrings from a module's tree, in place."""
    for node in ast.walk(tree):
        if isinstance(node, (*_DEFINITION, ast.Module)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


# ------------------------------------------------------------------------------------- modules


@dataclass(slots=True)
class _Module:
    """The top-level bindings of a module.

    Attributes:
        statements: Name -> the statements that define and modify it.
        imports: Name -> the imported module, and a name in it or None.
        typed: The same for imports under ``TYPE_CHECKING``, which only annotations use.
        outside: Function or class -> the global names that its code looks up.
    """

    name: str
    package: str
    statements: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    typed: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    outside: dict[str, set[str]] = field(default_factory=dict)

    def define(self, name: str, statement: ast.stmt) -> None:
        if statement not in (known := self.statements.setdefault(name, [])):
            known.append(statement)


def _is_ragkit(module: str) -> bool:
    return module.partition(".")[0] == _PACKAGE


def _path(module: str) -> Path | None:
    """Return the file of a module of ragkit; for a package, the file that lists its public names."""
    if not _is_ragkit(module):
        return None
    at = _ROOT.joinpath(*module.split(".")[1:])
    places = (at.with_suffix(".py"),) if module != _PACKAGE else ()
    return next((p for p in (*places, at / "__init__.pyi", at / "__init__.py") if p.is_file()), None)


@functools.cache
def _read(module: str) -> _Module:
    path = _path(module)
    assert path is not None
    source = path.read_text(encoding="utf-8")
    is_package = path.stem == "__init__"
    read = _Module(module, package=module if is_package else module.rpartition(".")[0])
    body = ast.parse(source).body
    for statement in body:
        _bind(read, statement, statement)
    for statement in body:  # statements that modify a value, after all bindings are known
        changes: Iterator[_NameUse] = iter(())
        if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant):
            changes = _names_in(statement)
        elif isinstance(statement, _DEFINITION):  # registration by @function.register or @table.add("name")
            by = [each.func if isinstance(each, ast.Call) else each for each in statement.decorator_list]
            changes = itertools.chain(*(_names_in(each) for each in by if isinstance(each, ast.Attribute)))
        for name, _ in changes:
            if name in read.statements:
                read.define(name, statement)
    for table in symtable.symtable(source, str(path), "exec").get_children():
        read.outside.setdefault(table.get_name(), set()).update(_looked_up(table))
    return read


def _bind(module: _Module, statement: ast.stmt, within: ast.stmt) -> None:
    """Record what a top-level statement binds; a name inside a block counts as bound by the whole block."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        module.imports.update(_imported(statement, module.package))
    elif isinstance(statement, _DEFINITION):
        module.define(statement.name, within)
    elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
        for each in statement.body:
            if isinstance(each, ast.Import | ast.ImportFrom):
                module.typed.update(_imported(each, module.package))
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets: list[ast.expr] = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for name, _ in itertools.chain.from_iterable(map(_names_in, targets)):  # also table in table["x"] = 1
            module.define(name, within)
    else:
        for node in ast.iter_child_nodes(statement):
            _bind_in(module, node, within)


def _bind_in(module: _Module, node: ast.AST, within: ast.stmt) -> None:
    if isinstance(node, ast.stmt):
        _bind(module, node, within)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        module.define(node.id, within)
    else:
        for child in ast.iter_child_nodes(node):
            _bind_in(module, child, within)


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, tuple[str, str | None]]:
    """Return the bindings of an import: name -> module, and a name in it or None."""
    if isinstance(node, ast.Import):
        return {a.asname or a.name.partition(".")[0]: (a.name if a.asname else a.name.partition(".")[0], None)
                for a in node.names}  # fmt: skip
    source = node.module or ""
    if node.level:
        parent = package.split(".")[: len(package.split(".")) - node.level + 1]
        source = ".".join([*parent, source] if source else parent)
    return {alias.asname or alias.name: (source, alias.name) for alias in node.names}


def _looked_up(table: symtable.SymbolTable) -> set[str]:
    found = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return found.union(*map(_looked_up, table.get_children()))


# ------------------------------------------------------------------------------------- definitions


@dataclass(slots=True)
class _Source:
    """The source of one definition and its direct references.

    Attributes:
        text: Its syntax tree; for a class, without the methods.
        refers_to: Other definitions in ragkit.
        packages: Third-party packages that it imports.
        attributes: Names of all attributes that it accesses.
        methods: For a class, name -> the method, which is a separate definition.
        bases: For a class, its base classes in ragkit.
    """

    text: str = ""
    refers_to: set[_Definition] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    methods: dict[str, _Definition] = field(default_factory=dict)
    bases: set[_Definition] = field(default_factory=set)

    def refer(self, module: str, attributes: tuple[str, ...]) -> None:
        """Resolve attributes of a module, through its submodules, to a definition, and record it."""
        if not _is_ragkit(module):
            self.use(module)
            return
        for attribute in attributes:
            if _path(f"{module}.{attribute}") is None:
                self.refers_to.add((module, attribute))
                return
            module = f"{module}.{attribute}"
        self.refers_to.add((module, ALL))

    def follow(self, target: tuple[str, str | None], attributes: tuple[str, ...]) -> None:
        """Record what an imported name and attributes of it refer to."""
        module, name = target
        self.refer(module, (name, *attributes) if name else attributes)

    def use(self, package: str) -> None:
        name = package.partition(".")[0]
        if name not in sys.stdlib_module_names and name != _PACKAGE:
            self.packages.add(name)


@functools.cache
def _source(module: str, name: str) -> _Source:
    """Return the source of one definition and its direct references."""
    found = _Source()
    read = _read(module)
    if name == ALL:
        for each in read.statements:
            found.refers_to.add((module, each))
        for target in read.imports.values():
            found.follow(target, ())
        return found
    owner, _, method = name.rpartition(".")
    statements: list[ast.stmt] = read.statements.get(owner or name, [])
    if owner:
        classes = [each for each in statements if isinstance(each, ast.ClassDef)]
        statements = [each for kind in classes for each in kind.body if getattr(each, "name", None) == method]
    if not statements:
        if imported := read.imports.get(name) or read.typed.get(name):
            found.follow(imported, ())
        else:  # created on access
            found.refers_to.add((module, ALL))
        return found
    for statement in statements:
        bare = _Stripped().visit(ast.parse(ast.unparse(statement)).body[0])
        visible = _visible(read, owner or name, bare)
        if isinstance(bare, ast.ClassDef):
            _split_methods(found, read, bare)
        found.text += ast.dump(bare)
        _refer(found, read, bare, visible)
        for typed, attributes in _annotated(bare, statement):
            if typed in read.statements:
                found.refers_to.add((read.name, typed))
            elif (named := read.imports.get(typed) or read.typed.get(typed)) and _is_ragkit(named[0]):
                found.follow(named, attributes)  # a third-party package in an annotation is not used
    return found


def _split_methods(found: _Source, read: _Module, kind: ast.ClassDef) -> None:
    """Split off the methods of a class, except special methods and those that a third-party base class may call."""
    for base in kind.bases:
        own = _Source()
        _refer(own, read, ast.Expr(base), None)
        found.bases |= own.refers_to
        is_known = own.refers_to or ast.unparse(base) in ("Protocol", "Exception")
        if not is_known:
            return
    for each in [each for each in kind.body if isinstance(each, _FUNCTION)]:
        if not each.name.startswith("__"):
            found.methods[each.name] = (read.name, f"{kind.name}.{each.name}")
    kind.body = [each for each in kind.body if getattr(each, "name", None) not in found.methods] or [ast.Pass()]


def _refer(found: _Source, read: _Module, bare: ast.stmt, visible: set[str] | None) -> None:
    inner: dict[str, tuple[str, str | None]] = {}
    names = list(_names_in(bare))
    by_name = any(name in _BY_NAME or _BY_NAME & set(attributes) for name, attributes in names)
    for node in ast.walk(bare):
        if isinstance(node, ast.Import | ast.ImportFrom):
            inner |= _imported(node, read.package)
            for name in [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or _PACKAGE]:
                found.use(name)
        elif isinstance(node, ast.Call):
            _refer_to_named_module(found, node)
            if getattr(node.func, "id", "") in _BY_NAME and not any(isinstance(a, ast.Constant) for a in node.args):
                found.attributes.add(_ANY)
        elif isinstance(node, ast.Attribute):
            found.attributes.add(node.attr)
        elif isinstance(node, ast.MatchClass):
            found.attributes.update(node.kwd_attrs)
        elif by_name and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.attributes.add(node.value)
    for name, attributes in names:
        if name in inner:
            found.follow(inner[name], attributes)
        elif visible is None or name in visible:
            if name in read.statements:
                found.refers_to.add((read.name, name))
            elif name in read.imports:
                found.follow(read.imports[name], attributes)
            elif name in _DYNAMIC:
                found.refers_to.add((read.name, ALL))


def _refer_to_named_module(found: _Source, call: ast.Call) -> None:
    """Record the module of ``importlib.import_module(...)``, or all of ragkit's if its name is computed."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in ("import_module", "__import__") or not call.args:
        return
    first = call.args[0]
    if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
        for path in _ROOT.rglob("*.py"):
            parts = path.relative_to(_ROOT.parent).with_suffix("").parts
            found.refers_to.add((".".join(parts).removesuffix(".__init__"), ALL))
    elif _is_ragkit(first.value):
        found.refers_to.add((first.value, ALL))
    else:
        found.use(first.value)


def _visible(read: _Module, owner: str, statement: ast.stmt) -> set[str] | None:
    """Return the global names that a function or class uses; None, for all names, for any other statement."""
    if not isinstance(statement, _DEFINITION):
        return None
    heads: list[ast.AST] = [*statement.decorator_list]
    if isinstance(statement, ast.ClassDef):
        heads += [*statement.bases, *(keyword.value for keyword in statement.keywords)]
        heads += [each.annotation for each in statement.body if isinstance(each, ast.AnnAssign)]  # dataclass fields
    else:
        arguments = statement.args
        heads += [*arguments.defaults, *(default for default in arguments.kw_defaults if default is not None)]
    return read.outside.get(owner, set()) | {name for head in heads for name, _ in _names_in(head)}


def _names_in(node: ast.AST) -> Iterator[_NameUse]:
    """Yield the names in a piece of code, each with the attributes accessed on it."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id, tuple(attributes)
    for child in ast.iter_child_nodes(node):
        yield from _names_in(child)


def _annotated(bare: ast.stmt, statement: ast.stmt) -> Iterator[_NameUse]:
    """Yield the names in annotations, including string annotations, but not in those of split-off methods."""
    if isinstance(bare, ast.ClassDef) and isinstance(statement, ast.ClassDef):
        kept = {getattr(each, "name", None) for each in bare.body}
        body = [each for each in statement.body if not isinstance(each, _FUNCTION) or each.name in kept]
        statement = ast.Module(body, [])  # type: ignore[assignment]
    for node in ast.walk(statement):
        annotations: list[ast.expr | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            annotations.append(node.annotation)
        elif isinstance(node, _FUNCTION) and not _DISPLAY.fullmatch(node.name):
            annotations.append(node.returns)
        for annotation in annotations:
            if annotation is None:
                continue
            yield from _names_in(annotation)
            for part in ast.walk(annotation):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    try:
                        yield from _names_in(ast.parse(part.value, mode="eval"))
                    except (SyntaxError, ValueError):  # not a type, as in Literal["a-b"]
                        continue


class _Stripped(ast.NodeTransformer):
    """Removes display methods, docstrings and annotations, which do not affect results."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [each for each in node.body if not (isinstance(each, _FUNCTION) and _DISPLAY.fullmatch(each.name))]
        return self._undocumented(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._plain(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._plain(node)

    def _plain(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        if not node.decorator_list:  # a decorator may read annotations, as singledispatch does
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        return self._undocumented(node)

    def _undocumented(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        node.body = node.body or [ast.Pass()]
        return self.generic_visit(node)
