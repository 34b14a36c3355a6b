"""A notebook's parameters: which it has, and the grid of values to try."""

from __future__ import annotations

import ast
import contextlib
import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ragkit.errors import InputError, needs
from ragkit.files import plain
from ragkit.hashing import hash_bytes


def grid(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of parameters; the last varies fastest.

    Raises:
        InputError: There is nothing to vary, a value is there twice, or cannot be a notebook's parameter.
    """
    axes = []
    for name, values in parameters.items():
        if not name.isidentifier():
            raise InputError(f"'{name}' cannot be a parameter's name. A parameter is a variable of the notebook.")
        is_one = isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable)
        axis = [_parameter(name, value) for value in ([values] if is_one else values)]
        texts = [msgspec.json.encode(value) for value in axis]
        if not axis:
            raise InputError(f"'{name}' has no values to try. Give at least one.")
        if twice := [value for at, value in enumerate(axis) if texts[at] in texts[:at]]:
            raise InputError(f"'{name}' has the value {twice[0]!r:.100} twice. Once is enough.")
        axes.append(axis)
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*axes)]


def _parameter(name: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"'{name}' is {value}, which a run cannot keep as a parameter. Give a finite number, or text.")
    return plain(value, name, nested=True)


class ParameterizedNotebook:
    """A notebook with parameters: read once, and checked before anything runs.

    Attributes:
        path: Its file, absolute.
        text: What the file holds.
        kernel_name: The kernel that it runs in.
        defaults: The variables that its cell tagged "parameters" sets, with their values where those are constants;
            empty for another language than Python.

    Args:
        path: Its file.
        kernel_name: Default: what the notebook names.

    Raises:
        InputError: There is no such file, it is no notebook, or there is no such kernel.
        MissingExtraError: papermill is not installed.
    """

    def __init__(self, path: str | Path, *, kernel_name: str | None = None) -> None:
        with needs("papermill", extra="lab"):
            import nbformat
            import papermill  # noqa: F401  # for the children; without it none needs to start
        self.path = path = Path(path).expanduser().absolute()
        if not path.is_file():
            raise InputError(f"There is no notebook at '{path}'. Check the spelling, or give an absolute path.")
        try:
            self.text = path.read_text(encoding="utf-8")
            book = nbformat.reads(self.text, as_version=4)  # type: ignore[no-untyped-call]
            code = [cell for cell in book.cells if cell.cell_type == "code"]
            self._sources = [(cell.source, "parameters" in cell.metadata.get("tags", ())) for cell in code]
            nbformat.validate(book)
        except Exception as error:  # whatever a file that is something else makes the reader raise
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"'{path}' is not a notebook: {why:.300}") from error
        self._metadata = book.metadata
        self.kernel_name = kernel_name or self._metadata.get("kernelspec", {}).get("name")
        self._find_kernel()
        self.defaults = self._find_defaults()

    def check(self, cell: Mapping[str, Any]) -> None:
        """Refuse parameters that the notebook has not."""
        if not any(tagged for _, tagged in self._sources):
            raise InputError(
                f"No cell of '{self.path.name}' is tagged 'parameters'. Tag the one that sets them "
                "(in JupyterLab: the gears at the right, 'Cell Tags')."
            )
        if self._is_python and (unknown := [name for name in cell if name not in self.defaults]):
            raise InputError(
                f"'{unknown[0]}' is no parameter of '{self.path.name}'. Its cell tagged 'parameters' sets: "
                f"{', '.join(self.defaults) or 'nothing'}."
            )

    def key(self, cell: Mapping[str, Any], digests: Mapping[str, str]) -> str:
        """Say what a cell's result depends on, as far as that is known: equal keys need not be run twice."""
        parts = [self._sources, self.kernel_name, sorted(cell.items()), sorted(digests.values())]
        return hash_bytes(msgspec.json.encode(parts))

    def _find_kernel(self) -> None:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

        specs = KernelSpecManager()
        try:
            specs.get_kernel_spec(self.kernel_name or "none")
        except NoSuchKernel as error:
            there = ", ".join(sorted(specs.find_kernel_specs())) or "none"
            wanted = f"There is no kernel '{self.kernel_name}'" if self.kernel_name else "The notebook names no kernel"
            raise InputError(f"{wanted}. Name one (kernel_name, or --kernel); there are: {there}.") from error

    @property
    def _is_python(self) -> bool:
        told = self._metadata.get("kernelspec", {}).get("language"), self._metadata.get("language_info", {}).get("name")
        return "python" in told or "python" in str(self.kernel_name)

    def _find_defaults(self) -> dict[str, Any]:
        """The parameters with their values, where those are constants; papermill's own parser misses some names."""
        if not self._is_python:
            return {}
        from IPython.core.inputtransformer2 import TransformerManager

        found: dict[str, Any] = {}
        for source in (source for source, tagged in self._sources if tagged):
            with contextlib.suppress(SyntaxError):  # the notebook's own error will say so
                cell = TransformerManager().transform_cell(source)  # type: ignore[no-untyped-call]
                tree = ast.parse(cell)
                stored = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
                found |= dict.fromkeys(node.id for node in stored if isinstance(node.ctx, ast.Store))
                for node in (node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)):
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    if isinstance(target, ast.Name) and node.value is not None:
                        with contextlib.suppress(ValueError, TypeError):  # not a constant, or not one that JSON knows
                            found[target.id] = plain(ast.literal_eval(node.value), target.id, nested=True)
        return found
