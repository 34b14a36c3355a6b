"""Parameterised notebooks and grids of parameter values."""

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
    """Return every combination of parameters; the last parameter varies fastest.

    Raises:
        InputError: A parameter has no values, has a value twice, or has a value that cannot be stored.
    """
    axes = []
    for name, values in parameters.items():
        if not name.isidentifier():
            raise InputError(f"'{name}' is not a valid parameter name. A parameter is a variable of the notebook.")
        is_one = isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable)
        axis = [_parameter(name, value) for value in ([values] if is_one else values)]
        texts = [msgspec.json.encode(value) for value in axis]
        if not axis:
            raise InputError(f"'{name}' has no values to try. Give at least one.")
        if repeated := [value for at, value in enumerate(axis) if texts[at] in texts[:at]]:
            raise InputError(f"'{name}' has the value {repeated[0]!r:.100} twice. Remove one.")
        axes.append(axis)
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*axes)]


def _parameter(name: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"'{name}' is {value}, which cannot be stored as a parameter. Use a finite number or text.")
    return plain(value, name, nested=True)


class ParameterizedNotebook:
    """A notebook with parameters. It is read once and validated before anything runs.

    Attributes:
        path: The notebook's file, absolute.
        text: The contents of the file.
        kernel_name: The kernel to run it in.
        defaults: The variables that its cell tagged "parameters" sets, with their values if those are constants and
            None otherwise; empty for a notebook in another language than Python.

    Args:
        path: The notebook's file.
        kernel_name: The kernel to use; the one named in the notebook by default.

    Raises:
        InputError: The file does not exist or is not a notebook, or the kernel does not exist.
        MissingExtraError: papermill is not installed.
    """

    def __init__(self, path: str | Path, *, kernel_name: str | None = None) -> None:
        with needs("papermill", extra="lab"):
            import nbformat
            import papermill  # noqa: F401  # the workers need it: fail before starting them
        self.path = path = Path(path).expanduser().absolute()
        if not path.is_file():
            raise InputError(f"There is no notebook at '{path}'. Check the spelling, or use an absolute path.")
        try:
            self.text = path.read_text(encoding="utf-8")
            book = nbformat.reads(self.text, as_version=4)  # type: ignore[no-untyped-call]
            code = [cell for cell in book.cells if cell.cell_type == "code"]
            self._sources = [(cell.source, "parameters" in cell.metadata.get("tags", ())) for cell in code]
            nbformat.validate(book)
        except Exception as error:  # nbformat raises many types of errors for files that are not notebooks
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"'{path}' is not a notebook: {why:.300}") from error
        self._metadata = book.metadata
        self.kernel_name = kernel_name or self._metadata.get("kernelspec", {}).get("name")
        self._find_kernel()
        self.defaults = self._find_defaults()

    def check(self, combination: Mapping[str, Any]) -> None:
        """Raise `InputError` if the notebook lacks one of these parameters."""
        if not any(tagged for _, tagged in self._sources):
            raise InputError(
                f"No cell of '{self.path.name}' is tagged 'parameters'. Tag the cell that sets the parameters "
                "(in JupyterLab: the gears at the right, 'Cell Tags')."
            )
        if self._is_python and (unknown := [name for name in combination if name not in self.defaults]):
            raise InputError(
                f"'{unknown[0]}' is not a parameter of '{self.path.name}'. Its cell tagged 'parameters' sets: "
                f"{', '.join(self.defaults) or 'nothing'}."
            )

    def key(self, combination: Mapping[str, Any], digests: Mapping[str, str]) -> str:
        """Return a hash of the code cells, kernel, parameters and data; runs with equal keys need not be repeated."""
        parts = [self._sources, self.kernel_name, sorted(combination.items()), sorted(digests.values())]
        return hash_bytes(msgspec.json.encode(parts))

    def _find_kernel(self) -> None:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

        specs = KernelSpecManager()
        try:
            specs.get_kernel_spec(self.kernel_name or "none")
        except NoSuchKernel as error:
            installed = ", ".join(sorted(specs.find_kernel_specs())) or "none"
            what = f"There is no kernel '{self.kernel_name}'" if self.kernel_name else "The notebook names no kernel"
            raise InputError(f"{what}. Name one (kernel_name or --kernel). Installed: {installed}.") from error

    @property
    def _is_python(self) -> bool:
        languages = (
            self._metadata.get("kernelspec", {}).get("language"),
            self._metadata.get("language_info", {}).get("name"),
        )
        return "python" in languages or "python" in str(self.kernel_name)

    def _find_defaults(self) -> dict[str, Any]:
        """Return the parameters with their values; papermill's own parser misses some names."""
        if not self._is_python:
            return {}
        from IPython.core.inputtransformer2 import TransformerManager

        found: dict[str, Any] = {}
        for source in (source for source, tagged in self._sources if tagged):
            with contextlib.suppress(SyntaxError):  # running the notebook reports the error
                cell = TransformerManager().transform_cell(source)  # type: ignore[no-untyped-call]
                tree = ast.parse(cell)
                stored = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
                found |= dict.fromkeys(node.id for node in stored if isinstance(node.ctx, ast.Store))
                for node in (node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)):
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    if isinstance(target, ast.Name) and node.value is not None:
                        with contextlib.suppress(ValueError, TypeError):  # not a constant, or not a JSON value
                            found[target.id] = plain(ast.literal_eval(node.value), target.id, nested=True)
        return found
