"""The shape that the package keeps: one-way imports, short files and functions, everything annotated and documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LAYERS = ("estimator", "profilers", "cli")
"""Each may import itself and those before it."""

MAY_TOUCH_THE_PROCESS = {
    "dnnmem.profilers.calibrate_worker": "the child process: tells its parent how far it is, through a pipe",
    "dnnmem.profilers.fake": "the child process: asks cuDNN's server where it is told to",
    "dnnmem.profilers.planned": "the process of a rank: torchrun tells it which one in its environment",
    "dnnmem.profilers.run_many": "the parent passes its whole environment on to the child, as `run` does",
    "dnnmem.profilers.script": "the child process of a script: flushes its own output before it is ended",
    "dnnmem.profilers.run": "the parent passes its whole environment on to the child, and reads nothing in it",
    "dnnmem.profilers.script_launcher_child": "the child process: what a launcher sets there is the answer",
    "dnnmem.profilers.script_spawn": "the child process: becomes a rank that its script would start",
    "dnnmem.profilers.verify": "the parent passes its whole environment on to the run",
    "dnnmem.profilers.verify_cuda": "the parent passes its whole environment on to torchrun",
    "dnnmem.profilers.virtual_facts": "the child process: asks cuDNN's server where the stub of cuDNN does",
    "dnnmem.profilers.worker": "the child process: its environment and output are its own, not a person's terminal",
}
"""Modules below the command line that may print or read the environment, each with its reason."""

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def _layer(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _imports(tree: ast.Module) -> set[str]:
    """Modules that a file imports anywhere, `from a import b` as both `a` and `a.b`; relative ones begin with a dot."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]


def _public(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public classes and functions, and the public methods of public classes, each with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{node.name}.")


def _is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def _loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return set(run.stdout.split())


def test_every_layer_is_looked_at(modules: Any) -> None:
    assert {_layer(module.name) for module in modules} >= {"", "__main__", *LAYERS}


def test_imports_point_one_way(module: Any) -> None:
    # GIVEN a module of a layer  WHEN its imports are read, those inside functions too
    found = _imports(_tree(module.path))
    # THEN none is relative, and none names a layer above its own
    assert not {name for name in found if name.startswith(".")}
    layer = _layer(module.name)
    above = LAYERS[LAYERS.index(layer) + 1 :] if layer in LAYERS else ()
    assert not {name for name in found if name.startswith("dnnmem.") and _layer(name) in above}


def test_the_estimator_is_python_and_numpy(modules: Any) -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "tomli", "dnnmem"}
    solvers = {"dnnmem.estimator.planners.milp": {"highspy", "scipy"}}  # asked for where they are installed
    used = {
        m.name: {i.partition(".")[0] for i in _imports(_tree(m.path))} for m in modules if _layer(m.name) == "estimator"
    }
    assert not {name: rest for name, found in used.items() if (rest := found - allowed - solvers.get(name, set()))}


def test_a_file_is_at_most_350_lines(module: Any) -> None:
    assert len(module.path.read_text(encoding="utf-8").splitlines()) <= 350


def test_a_function_is_at_most_50_lines(module: Any) -> None:
    lengths = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in _functions(_tree(module.path))}
    assert not {name: length for name, length in lengths.items() if length > 50}


def test_every_function_is_annotated(module: Any) -> None:
    bare = []
    for f in _functions(_tree(module.path)):
        arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg]
        told = all(a is None or a.annotation or a.arg in ("self", "cls") for a in arguments)
        bare += [] if told and f.returns else [f.name]
    assert not bare


def test_every_public_name_is_documented(module: Any) -> None:
    tree = _tree(module.path)
    assert ast.get_docstring(tree)
    assert not [name for name, node in _public(tree) if not ast.get_docstring(node)]


def test_every_field_of_a_dataclass_is_documented_under_it(module: Any) -> None:
    bare = []
    for name, node in _public(_tree(module.path)):
        if _is_dataclass(node):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and not told and not ast.unparse(field.target).startswith("_"):
                    bare.append(f"{name}.{ast.unparse(field.target)}")
    assert not bare


def test_nothing_below_the_command_line_prints_or_reads_the_environment(modules: Any) -> None:
    # GIVEN the words for output and environment  WHEN they are looked for below cli/
    words = {"print", "os.environ", "os.getenv", "sys.stdout", "sys.stderr"}
    used = {}
    for module in modules:
        if _layer(module.name) in ("estimator", "profilers"):
            nodes = ast.walk(_tree(module.path))
            used[module.name] = words & {ast.unparse(n) for n in nodes if isinstance(n, (ast.Name, ast.Attribute))}
    # THEN only the modules with a reason have them, and each of those still does
    assert {name for name, found in used.items() if found} == set(MAY_TOUCH_THE_PROCESS)


def test_importing_dnnmem_loads_nothing_heavy() -> None:
    assert _loaded_by("import dnnmem") & {"torch", "numpy", "pandas", "pydantic", "rich", "typer"} == set()


def test_importing_the_whole_estimator_loads_no_torch(modules: Any) -> None:
    # GIVEN every module of the estimator  WHEN a fresh interpreter imports them all
    loaded = _loaded_by("import " + ", ".join(m.name for m in modules if _layer(m.name) == "estimator"))
    # THEN numpy came along, but neither torch nor anything that renders
    assert "numpy" in loaded
    assert loaded & {"torch", "pandas", "pydantic", "rich", "typer"} == set()
