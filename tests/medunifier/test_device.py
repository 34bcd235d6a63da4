"""What fails on an accelerator alone, and which no test without one would meet."""

import ast


def _methods(call: ast.AST) -> list[str]:
    """Return the names of the methods chained before a call's own: ``a.b(c).d().e()`` has d and b before e."""
    names = []
    while isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        call = call.func.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            names.append(call.func.attr)
    return names


def test_tensors_become_arrays_by_way_of_the_host(root):
    """``tensor.numpy()`` is an error on a GPU, so ``cpu()`` stands in the same chain of calls, where it is seen."""
    found = 0
    for folder in ("data", "shared", "stage1_tokenizer", "stage2_unified", "medunifier", "scripts"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "numpy":
                    found += 1
                    assert "cpu" in _methods(node), f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}"
    assert found
