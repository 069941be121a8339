import compileall

from dnnmem.cli.app import run


def test_init_writes_a_python_file_with_its_own_name_in_it(tmp_path, capsys):
    assert run(["init", "net.py"]) == 0

    path = tmp_path / "net.py"
    assert compileall.compile_file(path, quiet=1)
    assert "dnnmem profile net.py --batch" in path.read_text(encoding="utf-8")
    assert capsys.readouterr().out == "wrote net.py; put your model in; next: dnnmem profile net.py\n"


def test_init_never_replaces_a_file_unasked(tmp_path, capsys):
    (tmp_path / "model.py").write_text("mine")

    assert run(["init"]) == 2
    assert (tmp_path / "model.py").read_text() == "mine"
    assert "replace it with --force" in capsys.readouterr().err

    assert run(["init", "--force"]) == 0
    assert "def make_model" in (tmp_path / "model.py").read_text(encoding="utf-8")


def test_init_writes_python_only(capsys):
    assert run(["init", "model"]) == 2
    assert "hint: dnnmem init model.py" in capsys.readouterr().err


def test_init_into_a_missing_folder_is_one_error(capsys):
    assert run(["init", "no/model.py"]) == 2
    assert "there is no folder no" in capsys.readouterr().err
