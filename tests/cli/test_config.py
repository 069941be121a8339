import pytest

from dnnmem.cli.config import KEYS, Setting, blame, resolve
from dnnmem.estimator.errors import UsageError


def write(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def test_the_command_line_goes_before_the_environment_before_the_file(tmp_path):
    write(tmp_path, "dnnmem.toml", 'batch = 1\nseq = 2\ngpu = "a"\n')

    settings = resolve({"batch": 3, "seq": None}, folder=tmp_path, environ={"DNNMEM_BATCH": "4", "DNNMEM_SEQ": "5"})

    assert {key: setting.value for key, setting in settings.items()} == {"batch": 3, "seq": 5, "gpu": "a"}
    assert [setting.origin for setting in settings.values()] == ["--batch", "DNNMEM_SEQ", str(tmp_path / "dnnmem.toml")]


def test_the_nearest_file_counts(tmp_path):
    inner = tmp_path / "a" / "b"
    write(tmp_path, "dnnmem.toml", "batch = 1\n")
    write(tmp_path / "a", "pyproject.toml", "[tool.dnnmem]\nbatch = 2\n")
    write(inner, "pyproject.toml", "[project]\nname = 'x'\n")

    assert resolve({}, folder=inner, environ={})["batch"].value == 2


def test_dnnmem_toml_goes_before_pyproject(tmp_path):
    write(tmp_path, "dnnmem.toml", "batch = 1\n")
    write(tmp_path, "pyproject.toml", "[tool.dnnmem]\nbatch = 2\n")

    assert resolve({}, folder=tmp_path, environ={})["batch"].value == 1


def test_an_empty_variable_is_not_set(tmp_path):
    assert resolve({}, folder=tmp_path, environ={"DNNMEM_BATCH": " "}) == {}


def test_a_whole_number_is_a_number_of_seconds(tmp_path):
    write(tmp_path, "dnnmem.toml", "timeout = 60\n")

    assert resolve({}, folder=tmp_path, environ={})["timeout"].value == 60.0


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("bacth = 1", "'bacth' in", "did you mean batch?"),
        ("xyzzy = 1", "'xyzzy' in", "it may have batch"),
        ("batch = 'eight'", "batch in", ""),
        ("batch = true", "it must be a whole number", ""),
        ("batch = 1.5", "it must be a whole number", ""),
        ("gpu = 80", "it must be a text", ""),
        ("batch = ", "cannot be read", ""),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, text, message, hint):
    write(tmp_path, "dnnmem.toml", text)

    with pytest.raises(UsageError) as caught:
        resolve({}, folder=tmp_path, environ={})

    assert message in caught.value.message
    assert str(tmp_path / "dnnmem.toml") in caught.value.message
    assert hint in caught.value.hint


def test_a_wrong_variable_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="DNNMEM_BATCH is 'many'; it must be a whole number"):
        resolve({}, folder=tmp_path, environ={"DNNMEM_BATCH": "many"})


def test_blame_names_who_gave_a_value_that_nobody_typed():
    settings = {"batch": Setting(value=0, origin="DNNMEM_BATCH"), "seq": Setting(value=0, origin="--seq")}

    assert (
        blame(UsageError("--batch is 0; no", hint="give 1"), settings).hint == "give 1\n--batch comes from DNNMEM_BATCH"
    )
    assert blame(UsageError("--seq is 0; no", hint="give 1"), settings).hint == "give 1"


def test_every_setting_is_an_option_of_profile(capsys):
    from dnnmem.cli.app import run

    run(["profile", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{key} " in text for key in KEYS)
