"""What `dnnmem check` is asked for: command line, environment, and the table in the settings file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnnmem.cli.check_limits import read_limits
from dnnmem.cli.check_request import prepare_check
from dnnmem.estimator.errors import UsageError


@pytest.fixture(name="project")
def _project(tmp_path):
    """Writes the table of a project."""

    def write(text):
        (tmp_path / "pyproject.toml").write_text(f"[tool.dnnmem.check]\n{text}\n")
        return tmp_path

    return write


def _prepare(folder, *targets, typed=None, limits=None, environ=None, **more):
    return prepare_check(targets, typed or {}, limits or {}, environ or {}, folder=folder, **more)


def test_without_settings_a_step_is_fake_and_may_grow_by_two_percent(tmp_path):
    # WHEN
    asked = _prepare(tmp_path, "model.py", typed={"batch": 8})
    # THEN
    (step,) = asked.steps
    assert (step.name, step.request.device, step.request.batch_size) == ("model.py", "fake", 8)
    assert (step.limits.max_increase, step.limits.budget_bytes, step.limits.max_slowdown) == (0.02, None, None)
    assert asked.baseline == Path(".dnnmem/baseline.json")


def test_a_step_has_its_own_settings_before_those_of_the_table(project):
    # GIVEN
    folder = project(
        'max-increase = "5%"\nbaseline = "accepted.json"\n'
        'targets = ["a.py", {target = "hf:gpt2", batch = 2, gpu = "a10g", max-increase = "1%", args = {n_layer = 2}}]'
    )
    # WHEN
    asked = _prepare(folder)
    # THEN
    first, second = asked.steps
    assert (first.limits.max_increase, second.limits.max_increase) == (0.05, 0.01)
    assert (second.request.batch_size, second.gpu.name) == (2, second.request.gpu)
    assert second.request.args == {"n_layer": "2"}
    assert asked.baseline == Path("accepted.json")


def test_what_is_typed_goes_first_then_the_environment(project):
    # GIVEN
    folder = project('max-increase = "5%"\nbudget = "3GiB"\ntargets = ["a.py"]')
    environ = {"DNNMEM_MAX_INCREASE": "4%", "DNNMEM_BUDGET": "2GiB", "DNNMEM_BATCH": "3", "DNNMEM_BASELINE": "b.json"}
    # WHEN
    asked = _prepare(folder, limits={"budget": "1GiB"}, environ=environ)
    # THEN
    (step,) = asked.steps
    assert (step.limits.max_increase, step.limits.budget_bytes, step.request.batch_size) == (0.04, 2**30, 3)
    assert asked.baseline == Path("b.json")


def test_a_format_for_other_commands_is_none_of_a_checks_business(tmp_path):
    assert _prepare(tmp_path, "a.py", environ={"DNNMEM_FORMAT": "junit"}).steps


def test_from_a_folder_below_files_of_the_table_are_found_and_called_the_same(project):
    # GIVEN
    folder = project('targets = ["models/net.py:Net", "hf:gpt2"]')
    below = folder / "docs" / "deep"
    below.mkdir(parents=True)
    # WHEN
    asked, above = _prepare(below), _prepare(folder)
    # THEN
    assert (
        [step.name for step in asked.steps] == [step.name for step in above.steps] == ["models/net.py:Net", "hf:gpt2"]
    )
    assert asked.steps[0].request.target == "../../models/net.py:Net"
    assert (below / asked.baseline).resolve() == (folder / above.baseline).resolve()


@pytest.mark.parametrize("spelling", ["model.py", "./model.py", "{folder}/model.py", "sub/../model.py"])
def test_one_file_has_one_name_however_it_is_spelled(spelling, tmp_path):
    assert _prepare(tmp_path, spelling.format(folder=tmp_path)).steps[0].name == "model.py"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "no TARGET is given"),
        ("targets = []", "no TARGET is given"),
        ('targets = "a.py"', "targets in .* is 'a.py'; it is a list"),
        ("targets = [3]", "3 is no target"),
        ("targets = [{batch = 8}]", "is no target"),
        ('target = ["a.py"]', "'target' in .* is not a setting of a check"),
        ('targets = [{target = "a.py", bacth = 8}]', "'bacth' in a.py"),
        ('targets = [{target = "a.py", batch = 0}]', "--batch is 0"),
        ('targets = [{target = "a.py", batch = true}]', "batch is True"),
        ('targets = [{target = "a.py", args = 3}]', "args of a.py is 3"),
        ('targets = [{target = "a.py", input = "8,3"}]', "input of a.py is '8,3'; it is a list"),
        ('targets = ["a.py"]\nbaseline = 3', "baseline in .* is 3"),
        ('targets = ["a.py"]\nbudget = "much"', "much"),
        ('targets = ["a.py"]\nmax-increase = "lots"', "--max-increase is 'lots'"),
        ('targets = ["a.py", "./a.py"]', "a.py stands there twice"),
        ('targets = [{target = "a.py", seed = 1}, {target = "a.py", seed = 2}]', "a.py stands there twice"),
        ('targets = ["step.trace.json.gz"]', "is a recorded step, which no commit changes"),
        ('targets = [""]', "TARGET is empty"),
        ('targets = [{target = "a.py", gpu = "b400"}]', "b400"),
        ('targets = [{target = "a.py", device = "tpu"}]', "--device is 'tpu'"),
        ('targets = ["a.py"]\nmax-slowdown = "10%"', "--max-slowdown needs a clock, and fake has none"),
    ],
)
def test_a_faulty_table_is_one_error(table, message, project):
    with pytest.raises(UsageError, match=message):
        _prepare(project(table))


@pytest.mark.parametrize("text", ["-1%", "2 percent", "nan", "", "1e9", "2", "1"])
def test_a_share_is_no_other_number(text):
    with pytest.raises(UsageError, match="--max-increase is"):
        read_limits({"max-increase": text})


def test_two_sizes_of_one_target_are_two_steps(project):
    # GIVEN
    folder = project('targets = [{target = "a.py", batch = 1}, {target = "a.py", batch = 2}]')
    # THEN
    assert [step.request.batch_size for step in _prepare(folder).steps] == [1, 2]
