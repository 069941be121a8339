"""What gets installed: all folders, all data files, one top-level name, and a front door that opens quickly."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="session")
def config(root: Path) -> Any:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names in a wheel and in a source archive, built from a copy of what the checkout holds."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    for path in _files(root, "src", "cli", "estimator", "profilers", "pyproject.toml", "README.md", "LICENSE"):
        target = source / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    hooks = "import sys, setuptools.build_meta as b; to = sys.argv[1]; b.build_wheel(to); b.build_sdist(to)"
    subprocess.run([sys.executable, "-c", hooks, str(place)], cwd=source, check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    (archive,) = place.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as z, tarfile.open(archive) as t:
        return {"wheel": set(z.namelist()), "sdist": {name.partition("/")[2] for name in t.getnames()}}


def _files(root: Path, *tops: str) -> Iterator[Path]:
    """Files below `tops`, without what Python and earlier builds leave behind."""
    for top in tops:
        for path in [root / top, *(root / top).rglob("*")]:
            if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path):
                yield path


def _loaded_by(*arguments: str) -> tuple[set[str], str]:
    """Top-level modules that `dnnmem ARGUMENTS` loads, and what it prints."""
    code = f"""
import sys
sys.argv = ["dnnmem", *{arguments!r}]
from dnnmem.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
finally:
    print("LOADED", *{{name.partition(".")[0] for name in sys.modules}})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    text, _, loaded = run.stdout.rpartition("LOADED ")
    return set(loaded.split()), text


def test_every_folder_with_modules_is_a_listed_package(config: Any, modules: Any, root: Path) -> None:
    # GIVEN the folders that hold modules  WHEN they are compared with the two lists of pyproject.toml
    folders = {m.name if m.path.stem == "__init__" else m.name.rpartition(".")[0]: m.path.parent for m in modules}
    tool = config["tool"]["setuptools"]
    # THEN each is a package, and at the place it is said to be
    assert set(tool["packages"]) == set(folders)
    assert {name: root / place for name, place in tool["package-dir"].items()}.items() <= folders.items()


def test_every_package_folder_has_an_init(modules: Any) -> None:
    assert not {m.path.parent for m in modules if not (m.path.parent / "__init__.py").is_file()}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_all_modules_and_data_files_are_packed(kind: str, built: Any, root: Path) -> None:
    # GIVEN every file in the folders of the package, data files among them
    names = {path.relative_to(root).as_posix() for path in _files(root, "src", "cli", "estimator", "profilers")}
    assert {Path(name).suffix for name in names} >= {".py", ".typed", ".json", ".toml"}
    if kind == "wheel":  # there the folders are one package already
        names = {name.removeprefix("src/") if name.startswith("src/") else f"dnnmem/{name}" for name in names}
    # WHEN the package is built  THEN it holds them all
    assert names <= built[kind]


def test_only_dnnmem_is_installed_at_the_top(built: Any) -> None:
    top = {name.partition("/")[0] for name in built["wheel"]}
    assert {name for name in top if not name.endswith(".dist-info")} == {"dnnmem"}


def test_no_top_level_cli_can_be_imported() -> None:
    code = "import importlib.util as u; print([n for n in ('cli', 'estimator', 'profilers') if u.find_spec(n)])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert run.stdout.strip() == "[]"


def test_the_version_is_the_one_in_the_code(built: Any) -> None:
    import dnnmem

    assert f"dnnmem-{dnnmem.__version__}.dist-info/METADATA" in built["wheel"]


@pytest.mark.parametrize(
    ("arguments", "brought_by_typer"),
    [(["--help"], set()), (["--version"], set()), (["profile", "--help"], {"pydantic"})],
    ids=["help", "version", "profile-help"],
)
def test_help_and_version_load_nothing_heavy(arguments: list[str], brought_by_typer: set[str]) -> None:
    loaded, text = _loaded_by(*arguments)
    assert "dnnmem" in text
    assert loaded & {"torch", "numpy", "pandas", "pydantic", "jinja2"} <= brought_by_typer


def test_the_package_runs_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "dnnmem", "--version"], capture_output=True, text=True, check=True, cwd="/"
    )
    import dnnmem

    assert dnnmem.__version__ in run.stdout
