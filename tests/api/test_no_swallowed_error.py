"""No part of the project catches what it does not know, but for the places below, which say so and why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("crds", "operator", "trainer_image", "cli", "localcluster")
BLANKET = {"Exception", "BaseException"}
ALLOWED = {
    ("resync.py", "_to_do"): "the loop over all jobs: logs the traceback and counts it, for the others go on",
    ("exits.py", "run_phase"): "the process boundary: logs the traceback and leaves with 70",
    ("storage.py", "_call"): "filesystems share no base class; what is not known to be transient is raised again",
}


def names(node: ast.expr | None) -> set[str]:
    """Of the exception classes in an `except` or a call's arguments."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return {part.id for part in parts if isinstance(part, ast.Name)}


def blanket(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Function and line of each place that catches everything and does not raise it again."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            continue
        for node in inside(function):
            name = getattr(function, "name", "")
            match node:
                case ast.ExceptHandler(type=kind, body=body):
                    raises = isinstance(body[-1], ast.Raise) and body[-1].exc is None
                    if (kind is None or names(kind) & BLANKET) and not raises:
                        yield name, node.lineno
                case ast.Call(func=ast.Attribute(attr="suppress") | ast.Name(id="suppress"), args=classes):
                    if any(names(each) & BLANKET for each in classes):
                        yield name, node.lineno


def inside(function: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function, without those of functions in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from inside(child)


def test_nothing_unknown_is_caught_and_forgotten() -> None:
    found = {
        (path.name, name): f"{path}:{line}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name, line in blanket(ast.parse(path.read_text()))
    }
    assert {place for key, place in found.items() if key not in ALLOWED} == set()
    assert set(ALLOWED) <= set(found)


@pytest.mark.parametrize(
    ("body", "caught"),
    [
        ("try: f()\n    except Exception: pass", True),
        ("try: f()\n    except: pass", True),
        ("try: f()\n    except (OSError, BaseException) as e: print(e)", True),
        ("with contextlib.suppress(Exception): f()", True),
        ("try: f()\n    except BaseException:\n        g()\n        raise", False),
        ("try: f()\n    except OSError: pass", False),
        ("with contextlib.suppress(OSError): f()", False),
    ],
)
def test_the_search_finds_each_way(body: str, caught: bool) -> None:
    assert bool(list(blanket(ast.parse(f"def here():\n    {body}\n")))) is caught
