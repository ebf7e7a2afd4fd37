"""One file from many: ``modeling/infer`` becomes a package's ``infer.py``, ``demo/page`` a Space's ``app.py``.

A package ships one file, because relative imports fail for ``from infer import …`` and plain imports fail for the Auto
classes. The bundle is the modules' own text, in the order of their imports. A line before each part names its module,
so that a line number in a traceback leads to the module.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hub_release.package import ReleaseError

ROOT = Path(__file__).resolve().parents[2]
"""The parent of the code's folders, in a checkout and in an installed wheel."""
INFER = "modeling.infer"
SHIPPED = ("pipeline", "shell")
"""Modules of ``modeling/infer`` that nothing else imports; they and their imports are all of ``infer.py``."""
_LOGGER = "logger = logging.getLogger(__name__)"
_WIDTH = 120


@dataclass(frozen=True)
class Module:
    """The parts of a module.

    Attributes:
        docstring: its docstring.
        needs: modules of the same package or of ``modeling.infer`` that it imports, in the order of its imports.
        imports: its other imports at the top, as (module, name, alias); name is "" for ``import module``.
        body: its text without docstring, imports and logger.
        logs: whether it has a logger.
    """

    docstring: str
    needs: tuple[str, ...]
    imports: frozenset[tuple[str, str, str]]
    body: str
    logs: bool


WITHOUT_TORCH = ("shell", "graph_classifier")
"""The same for ``infer_onnx.py``, in which :data:`STAND_IN` stands for the classifier by PyTorch."""
STAND_IN = (f"{INFER}.classifier", f"{INFER}.graph_classifier")


def bundle_without_torch() -> str:
    """The text of ``infer_onnx.py``."""
    return bundle(WITHOUT_TORCH, stand_in=STAND_IN)


@cache
def bundle(roots: tuple[str, ...] = SHIPPED, package: str = INFER, stand_in: tuple[str, str] = ("", "")) -> str:
    """The text of one file with these modules of a package and their imports; it has the last root's docstring.

    Args:
        roots: modules of the package.
        package: their package.
        stand_in: a module, and one with the same names that stands for it wherever it is imported.

    Raises:
        ReleaseError: a module imports in a form that cannot be bundled, or two modules define the same name.
    """
    modules: dict[str, Module] = {}
    for root in roots:
        _collect(f"{package}.{root}", package, modules, stand_in)
    imports = sorted(set[tuple[str, str, str]]().union(*(module.imports for module in modules.values())))
    parts = [f'"""{modules[f"{package}.{roots[-1]}"].docstring}\n"""', *_import_lines(imports)]
    if any(module.logs for module in modules.values()):
        parts.append(_LOGGER)
    for name, module in modules.items():
        title = f"# {name.replace('.', '/')}.py: {module.docstring.partition(chr(10))[0]}"
        parts.append(f"{'# ' + '-' * (_WIDTH - 2)}\n{title}\n\n\n{module.body}")
    text = "\n\n\n".join(parts) + "\n"
    _refuse_repeated(text, package)
    return text


def _collect(name: str, package: str, modules: dict[str, Module], stand_in: tuple[str, str]) -> None:
    """Add a module after the modules that it needs."""
    name = stand_in[1] if name == stand_in[0] else name
    if name in modules:
        return
    module = read_module(name, package)
    for needed in module.needs:
        _collect(needed, package, modules, stand_in)
    modules[name] = module


def read_module(name: str, package: str = INFER) -> Module:
    """Split a module (its dotted name) into its parts.

    Raises:
        ReleaseError: it imports in a form that cannot be bundled.
    """
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines()
    needs: list[str] = []
    imports: set[tuple[str, str, str]] = set()
    for node in tree.body:
        is_docstring = node is tree.body[0] and isinstance(node, ast.Expr)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith((f"{package}.", f"{INFER}.")):
            needs.append(str(node.module))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports |= set(_names(node))
        elif not is_docstring and ast.unparse(node) != _LOGGER:
            continue
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    _refuse_other_imports(path, tree, package)
    body = "\n".join(lines).strip("\n")
    return Module(ast.get_docstring(tree) or "", tuple(needs), frozenset(imports), body, _LOGGER in text)


def _names(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str, str]]:
    for alias in node.names:
        if isinstance(node, ast.Import):
            yield alias.name, "", alias.asname or ""
        else:
            yield str(node.module), alias.name, alias.asname or ""


def _refuse_other_imports(path: Path, tree: ast.Module, package: str) -> None:
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        sources = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        own = any(source.split(".")[0] in ("modeling", "training", "hub_release") for source in sources)
        plain = (
            isinstance(node, ast.ImportFrom)
            and id(node) in top
            and str(node.module).startswith((f"{package}.", f"{INFER}."))
        )
        renamed = any(alias.asname or alias.name == "*" for alias in node.names)
        if (isinstance(node, ast.ImportFrom) and node.level) or (own and (renamed or not plain)):
            raise ReleaseError(
                f"{path}, line {node.lineno}: {ast.unparse(node)!r} cannot be bundled. Remedy: write "
                f"'from {package}.module import name' at the top of the module"
            )
        if "__future__" in sources:  # the strict configuration reads annotations, which this import turns into text
            raise ReleaseError(f"{path}, line {node.lineno}: imports from __future__. Remedy: quote forward references")


def _import_lines(imports: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Imports of the standard library, then of other packages; each module once."""
    for standard in (True, False):
        plain: list[str] = []
        named: dict[str, list[str]] = {}
        for module, name, alias in imports:
            if (module.split(".")[0] in sys.stdlib_module_names) is not standard:
                continue
            renamed = f" as {alias}" if alias else ""
            if name:
                named.setdefault(module, []).append(name + renamed)
            else:
                plain.append(f"import {module}{renamed}")
        yield "\n".join([*plain, *(_from_import(module, names) for module, names in named.items())])


def _from_import(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    return line if len(line) <= _WIDTH else f"from {module} import (\n    " + ",\n    ".join(names) + ",\n)"


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Names that a module defines at its top level, each with its statement."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(part, ast.Name):
                        yield part.id, node


def _refuse_repeated(text: str, package: str) -> None:
    names = [name for name, _ in definitions(ast.parse(text))]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ReleaseError(f"{package} defines {', '.join(repeated)} in two modules. Remedy: rename one of them")
