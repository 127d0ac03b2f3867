"""Which module imports which, and how long everything is: the structure of the library, read from its source.

    python benchmarks/structure.py             # this clone
    python benchmarks/structure.py FOLDER      # another one, such as a clone of an earlier version

Imports within functions count too. Nothing of the library is imported or run.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LEFT_OUT = ("tests", "benchmarks", "docs", "build", "runs")


def find_modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the library below `root`, in the order of the names."""
    files = sorted(path for path in root.rglob("*.py") if not path.relative_to(root).parts[0].startswith("."))
    modules = {}
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in _LEFT_OUT and parts[-1] != "__init__":
            modules[".".join(parts)] = path
    return modules


def read_imports(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of the library that it imports, at its head or within functions."""
    found = {}
    for name, path in modules.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name] = named & modules.keys() - {name}
    return found


def find_circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, directly or through others."""

    def reach(start):
        seen, waiting = set(), [start]
        while waiting:
            for name in imports[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    reached = {name: reach(name) for name in imports}
    circles = []
    for name in imports:
        circle = {other for other in reached[name] if name in reached[other]}
        if circle and circle not in circles:
            circles.append(circle)
    return circles


def main(root: Path = ROOT) -> int:
    modules = find_modules(root)
    imports, lines, classes = read_imports(modules), {}, []
    for name, path in modules.items():
        source = path.read_text(encoding="utf-8")
        lines[name] = len(source.splitlines())
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
        classes += [(node.end_lineno - node.lineno + 1, node.name, name) for node in nodes]
        print(f"{lines[name]:5d}  {name:<42} <- {', '.join(sorted(imports[name])) or '-'}")
    classes.sort(reverse=True)
    circles = find_circles(imports)
    print(f"{len(modules)} modules, {sum(lines.values()):,} lines, {sum(map(len, imports.values()))} imports")
    print(f"at the top level: {', '.join(name for name in modules if '.' not in name)}")
    print(f"circles: {'; '.join(', '.join(sorted(circle)) for circle in circles) or 'none'}")
    print("longest files: " + ", ".join(f"{name} {lines[name]}" for name in sorted(lines, key=lines.get)[:-6:-1]))
    print("longest classes: " + ", ".join(f"{name} in {module} {length}" for length, name, module in classes[:5]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
