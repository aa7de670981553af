"""Imports go downward only: a module imports from its own layer or from lower ones."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hf_cifar"
LAYERS = [  # lowest first; packages of one line don't need each other
    ["errors", "host", "text"],
    ["files", "network"],
    ["distributed"],
    ["augmentation", "recipe"],
    ["data"],
    ["models"],
    ["features", "training"],
    ["evaluation"],
    ["reporting"],
    ["demo"],
    ["adaptation", "export", "hub", "methods", "objectives"],
    ["runs"],
    ["planning"],
    ["cli"],
]
LAYER = {package: number for number, layer in enumerate(LAYERS) for package in layer}
MODULES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]


def imported_packages(module: Path) -> set[str]:
    """Return the packages of hf_cifar that a module imports from, anywhere in its code."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("hf_cifar.")}


def test_no_module_imports_from_a_higher_layer():
    for module in MODULES:
        package = module.parts[0].removesuffix(".py")
        if not package.startswith("__"):  # the front door of the Python interface and of `-m`
            upward = [p for p in imported_packages(module) if LAYER[p] > LAYER[package]]
            assert not upward, f"{module} imports from {upward}"


def test_packages_are_two_deep_at_most_and_export_nothing_again():
    assert max(len(module.parts) for module in MODULES) <= 3
    for module in MODULES:
        if module.name == "__init__.py" and len(module.parts) > 1:
            assert (PACKAGE / module).read_text(encoding="utf-8") == "", module
