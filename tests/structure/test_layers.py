"""Imports go down only; files and functions stay small; light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "nalanda").rglob("*.py"))
LAYERS = [
    {"base", "config"},
    {"text", "metrics", "nn"},
    {"tokenizer", "corpus", "models", "adapt"},
    {"data", "objectives", "generate"},
    {"train", "align", "tasks"},
    {"evaluate", "compress", "study"},
    {"serve"},
    {"stages"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def package(path: Path) -> str:
    return path.relative_to(ROOT / "nalanda").parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def test_imports_go_down_only() -> None:
    wrong = []
    for path in FILES:
        here = package(path)
        if here == "__init__":
            continue
        assert here in LEVEL, f"{path}: '{here}' has no layer; DESIGN section 2 lists them"
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "nalanda" and len(parts) > 1 and LEVEL.get(parts[1], -1) > LEVEL[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(sorted(set(wrong)))


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("train", tuple(f"nalanda.objectives.{p.stem}" for p in FILES if p.parent.name == "objectives")),
        ("nn", ("nalanda.train", "nalanda.objectives", "nalanda.data")),
        ("text", ("torch", "daft", "pyarrow")),
    ],
)
def test_what_a_package_must_not_know(layer: str, forbidden: tuple[str, ...]) -> None:
    for path in FILES:
        if package(path) == layer:
            known = {
                n for n in imports(path) if not n.startswith("nalanda.objectives.loss")
            }  # the contract alone
            bad = [n for n in known if any(n == f or n.startswith(f + ".") for f in forbidden)]
            assert not bad, f"{path.relative_to(ROOT)} imports {bad}"


def test_the_package_imports_no_oracle_and_no_pickle() -> None:
    for path in FILES:
        bad = {n.split(".")[0] for n in imports(path)} & {"transformers", "peft", "pickle", "dill", "marshal"}
        assert not bad, f"{path.relative_to(ROOT)} imports {bad}"


def test_sizes() -> None:
    long = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    "module", ["nalanda.cli", "nalanda.config", "nalanda.base.run", "nalanda.text.language"]
)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'daft', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
