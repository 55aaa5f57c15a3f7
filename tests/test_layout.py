"""Who may import whom: ring nobody, frontend and backend not each other, and nobody by a name without the package's."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import miniguest

PACKAGE = Path(miniguest.__path__[0])
PARTS = ("ring", "frontend", "backend", "deploy")
ALLOWED = {
    "ring": {"ring"},
    "frontend": {"ring", "frontend"},
    "backend": {"ring", "backend"},
    "deploy": {"ring", "frontend", "backend", "deploy"},
}


def imported(source: str, module: str = "miniguest.x") -> Iterator[str]:
    """The full names of all that a source imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*base, node.module] if node.module else base)
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)


def wrong_imports(source: str, part: str, module: str) -> list[str]:
    wrong = []
    for name in imported(source, module):
        top, _, rest = name.partition(".")
        owner = rest.partition(".")[0]
        if top in PARTS or (top == "miniguest" and owner in PARTS and owner not in ALLOWED[part]):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("part", PARTS)
def test_imports_go_only_where_they_may(part: str) -> None:
    root = PACKAGE / part
    files = [*root.rglob("*.py"), *root.rglob("*.pyi")]
    assert files
    for file in files:
        module = ".".join(["miniguest", part, *file.relative_to(root).with_suffix("").parts])
        assert wrong_imports(file.read_text(), part, module) == [], file


@pytest.mark.parametrize("part", PARTS)
def test_compiled_sources_too(part: str) -> None:
    for file in [*(PACKAGE / part).rglob("*.pyx"), *(PACKAGE / part).rglob("*.px[di]")]:
        for line in file.read_text().splitlines():
            words = line.replace(",", " ").split()
            if words[:1] in (["from"], ["import"], ["cimport"]) and words[1].startswith("miniguest."):
                assert words[1].split(".")[1] in ALLOWED[part], f"{file}: {line}"


@pytest.mark.parametrize(("part", "source"), [
    ("ring", "from miniguest.deploy import report"),
    ("ring", "def f():\n    import miniguest.frontend.vcpu"),
    ("backend", "from miniguest import frontend"),
    ("frontend", "from ..backend.blkback import Disk"),
    ("deploy", "import ring"),
    ("deploy", "from ring.memory import Memory"),
])
def test_a_wrong_import_would_be_found(part: str, source: str) -> None:
    assert wrong_imports(source, part, f"miniguest.{part}.x")


def test_tests_import_by_the_package_name() -> None:
    for file in Path(__file__).parent.glob("*.py"):
        tops = {name.partition(".")[0] for name in imported(file.read_text())}
        assert not tops & set(PARTS), file


def test_parts_are_the_folders_of_the_repository() -> None:
    root = Path(__file__).parents[1]
    for part in PARTS:
        assert (root / ".src/miniguest" / part).resolve() == root / part
