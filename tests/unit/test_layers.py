"""What import-linter cannot see, read from the syntax tree: cycles, libpq, SQL, length.

A rule is a pure function from source text to findings, so each rule is first shown to find something in a text that
breaks it. Without that, a rule that looks at nothing would pass for ever.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "pgconcert"
LONGEST_FILE = 420

# A text that is a statement begins with one of these; one in the middle of a sentence is prose. Server functions are
# found anywhere, because a fragment of SQL may begin with anything.
STATEMENT = re.compile(
    r"""^\s*(?: SELECT\b | INSERT\s+INTO\b | UPDATE\s+\S+\s+SET\b | DELETE\s+FROM\b | WITH\s+\S+\s+AS\b
          | VALUES\s*\( | (?:CREATE|ALTER|DROP|TRUNCATE)\s+[A-Z]+\b | COPY\s+\S+\s+(?:FROM|TO)\b
          | (?:UN)?LISTEN\s+["{*\w] | NOTIFY\s+["{\w] | SET\s+(?:LOCAL\s+)?\w+\s*(?:=|TO\b)
          | (?:BEGIN|COMMIT|ROLLBACK|SAVEPOINT|DISCARD|DEALLOCATE)\b(?!\s+[a-z]) )
      | \bpg_(?:try_)?advisory_\w+\s*\( | \bpg_(?:notify|backend_pid|terminate_backend|cancel_backend)\s*\(
      | \bFROM\s+pg_\w+
    """,
    re.VERBOSE,
)

pytestmark = pytest.mark.timeout(300)  # much work for a busy processor


def module_name(path: Path, root: Path = SOURCE) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_all() -> dict[str, str]:
    return {str(path.relative_to(SOURCE)): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that can run. A lazy import inside a function counts: it only moves a cycle to a later hour."""
    below = [tree]
    while below:
        for node in ast.iter_child_nodes(below.pop()):
            runs = node.orelse if isinstance(node, ast.If) and is_type_checking(node) else [node]
            below += runs
            yield from runs


def imported(source: str, package: str = "") -> Iterator[str]:
    """Absolute names that the text imports; `from a import b` gives `a.b`. `package` resolves relative imports."""
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def edges(modules: Mapping[str, tuple[str, str]]) -> dict[str, set[str]]:
    """Who imports whom; `modules` maps a name to its package and its text."""
    graph: dict[str, set[str]] = {}
    for name, (package, source) in modules.items():
        found = set()
        for target in imported(source, package):
            known = target if target in modules else target.rpartition(".")[0]
            if known in modules and known != name:
                found.add(known)
        graph[name] = found
    return graph


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One cycle as a path that ends where it begins; empty when there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if cycle := walk(target, [*path, name]):
                return cycle
        done.add(name)
        return []

    for name in sorted(graph):
        if cycle := walk(name, []):
            return cycle
    return []


def touches_libpq(source: str) -> bool:
    if any(re.match(r"psycopg\.(pq|_psycopg)\b|psycopg_(c|binary)\b", name) for name in imported(source)):
        return True
    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return any(ast.unparse(node) == "psycopg.pq" for node in attributes)


def docstrings(tree: ast.Module) -> set[int]:
    """Identities of the nodes that are documentation: texts that stand alone as a statement."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def statements(source: str) -> list[str]:
    """Texts that look like SQL. In an f-string a replaced part reads as `{}`."""
    tree = ast.parse(source)
    passed_over = docstrings(tree)
    found = []
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            passed_over.update(id(part) for part in node.values)
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in passed_over:
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        if STATEMENT.search(text):
            found.append(text.strip())
    return found


def test_no_import_cycle() -> None:
    modules = {}
    for path in SOURCE.rglob("*.py"):
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        modules[name] = (package, path.read_text())
    assert len(modules) > 1
    assert find_cycle(edges(modules)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import app.b",
        "from app import b",
        "from app.b import thing",
        "from . import b",
        "from .b import thing",
        "def late():\n    from app.b import thing",
    ],
)
def test_a_cycle_is_found(text: str) -> None:
    modules = {"app": ("app", ""), "app.a": ("app", text), "app.b": ("app", "import app.a")}
    assert find_cycle(edges(modules)) == ["app.a", "app.b", "app.a"]


def test_imports_for_types_alone_make_no_cycle() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import app.b"
    modules = {"app.a": ("app", text), "app.b": ("app", "import app.a")}
    assert find_cycle(edges(modules)) == []


def test_only_the_link_touches_libpq() -> None:
    assert [path for path, text in read_all().items() if touches_libpq(text) and path != "postgres/link.py"] == []


@pytest.mark.parametrize(
    "text",
    ["import psycopg.pq", "from psycopg import pq", "from psycopg.pq import PGconn", "import psycopg\nx = psycopg.pq"],
)
def test_libpq_is_found(text: str) -> None:
    assert touches_libpq(text)


def test_other_parts_of_psycopg_are_not_libpq() -> None:
    assert not touches_libpq("import psycopg\nfrom psycopg import conninfo\nx = psycopg.connect")


def test_sql_stands_only_in_postgres() -> None:
    outside = {path: text for path, text in read_all().items() if not path.startswith(("postgres/", "transaction/"))}
    assert {path: found for path, text in outside.items() if (found := statements(text))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "x = 'SELECT 1'",
        "x = b'select pg_advisory_unlock(1)'",
        "x = f'LISTEN {name}'",
        "x = f'NOTIFY \"{name}\"'",
        "x = '''\\n   UPDATE jobs SET a = 1'''",
        "x = 'pg_try_advisory_lock($1)'",
        "x = 'BEGIN'",
        "x = 'SET statement_timeout = 0'",
        "x = 'pid in (select pid FROM pg_locks)'",
    ],
)
def test_sql_is_found(text: str) -> None:
    assert statements(text)


@pytest.mark.parametrize(
    "text",
    [
        "'''SELECT 1 is what the probe sends.'''",
        "x = 'cannot LISTEN through a transaction pooler'",
        "x = 'Begin with a direct_url'",
        "x = 'select one of these'",
        "SET = 1",
    ],
)
def test_prose_is_not_sql(text: str) -> None:
    assert statements(text) == []


def test_no_long_file() -> None:
    lengths = {path: text.count("\n") for path, text in read_all().items()}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}
