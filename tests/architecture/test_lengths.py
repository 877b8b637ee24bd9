"""Budgets of the house style: a file, a function, a signature that outgrows them should be split by meaning."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "luthier"
FILES = sorted(SOURCE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> list[tuple[str, Function]]:
    return [
        (f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, Function)
    ]


def test_a_file_has_at_most_400_lines() -> None:
    lengths = {str(path.relative_to(SOURCE)): len(path.read_text().splitlines()) for path in FILES}
    assert len(lengths) > 20
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_a_function_has_at_most_60_lines() -> None:
    assert [name for name, node in functions() if (node.end_lineno or 0) - node.lineno + 1 > 60] == []


def test_a_signature_has_at_most_6_parameters() -> None:
    def parameters(node: Function) -> int:
        names = [item.arg for item in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        return len([name for name in names if name not in ("self", "cls")])

    assert [name for name, node in functions() if parameters(node) > 6] == []


def test_public_functions_have_docstrings() -> None:
    def undocumented(body: list[ast.stmt], where: str) -> list[str]:
        found = []
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found += undocumented(node.body, f"{where}.{node.name}")
            elif isinstance(node, Function) and not node.name.startswith("_") and ast.get_docstring(node) is None:
                found.append(f"{where}.{node.name}")
        return found

    assert [name for path in FILES for name in undocumented(ast.parse(path.read_text()).body, str(path.relative_to(SOURCE)))] == []


def test_every_module_says_what_it_is() -> None:
    assert [str(path) for path in FILES if ast.get_docstring(ast.parse(path.read_text())) is None] == []


def test_no_pickle_is_ever_read_or_written() -> None:
    forbidden = ("torch.load", "torch.save", "import pickle", "from pickle", "allow_pickle=True", "eval(", "exec(")
    found = {
        f"{path.relative_to(SOURCE)}: {word}"
        for path in FILES
        for word in forbidden
        if word in path.read_text().replace(".eval(", ".").replace("_eval(", "_")
    }
    assert found == set()


def test_a_guard_is_never_an_assert() -> None:
    asserts = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert asserts == []
