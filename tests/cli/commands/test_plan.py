from __future__ import annotations

import importlib.util
import io
import json

import jsonschema
import pytest
import torch

from dnnmem.cli.app import run
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Remat
from dnnmem.estimator.planners.problem import Cost, Found
from dnnmem.estimator.planners.solve import Planner, planners
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace_file import save_trace
from tests.estimator.passes.steps import SIZES, gpt, sample

STEP = {"layers": 6, "batch": 64}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "gpt.trace.json.gz"
    save_trace(gpt(**STEP), Measurement(), path)
    return str(path)


@pytest.fixture(scope="module")
def plain():
    """Bytes that the plain step reserves."""
    return replay_trace(gpt(**STEP)).peak_reserved_bytes


@pytest.fixture
def only(monkeypatch):
    """Lets the registry hold these planners alone."""

    def set_to(*some):
        known = {planner.name: planner for planner in some}
        for module in ("dnnmem.estimator.planners.solve", "dnnmem.cli.plan_run"):
            monkeypatch.setattr(f"{module}.planners", lambda: known)

    return set_to


def told(arguments):
    """Exit code and what stderr said."""
    return run(arguments, stderr=(text := io.StringIO())), text.getvalue()


def of(planner, plain, share=0.75):
    return ["--planner", planner, "--no-compare", "--budget", str(int(share * plain))]


def test_every_planner_answers_and_the_step_is_drawn(saved, plain, capsys):
    # GIVEN three quarters of what a step reserves  WHEN a plan is asked for
    code, error = told(["plan", saved, "--budget", str(int(0.75 * plain)), "--time-limit", "2", "--no-color"])
    text = capsys.readouterr().out
    # THEN one is chosen and drawn, and all that are registered have a line
    assert (code, error) == (0, "")
    assert "FITS: " in text
    assert "planned by " in text
    assert "F forward" in text
    lines = [line.lstrip("> ").split()[0] for line in text[text.index("planner  ") :].splitlines()[1:] if line.strip()]
    assert set(planners()) <= set(lines)
    assert all(len(line) <= 100 for line in text.splitlines())


def test_json_is_what_its_schema_says(saved, plain, tmp_path, capsys, root):
    # WHEN the answers are asked for as JSON, and the plan as a file
    budget = int(0.75 * plain)
    arguments = ["--budget", str(budget), "--time-limit", "2", "--json", "-", "--save-plan", "plan.json", "-q"]
    assert told(["plan", saved, *arguments]) == (0, "")
    data = json.loads(capsys.readouterr().out)
    jsonschema.validate(data, json.loads((root / "src/dnnmem/schemas/planners-1.schema.json").read_text()))
    # THEN what fits keeps the budget, and the plan of both is one
    assert {answer["planner"] for answer in data["answers"]} == set(planners())
    assert all(a["found"]["peak_reserved_bytes"] <= budget for a in data["answers"] if a["outcome"] == "fits")
    assert json.loads((tmp_path / "plan.json").read_text()) == {"schema": "dnnmem.plan/1", **data["chosen"]["plan"]}
    # AND `estimate` reads the file, and predicts the same
    assert told(["estimate", saved, "--plan", "plan.json", "--cluster", data["gpu"], "--json", "-", "-q"])[0] == 0
    again = json.loads(capsys.readouterr().out)
    assert again["step_seconds"] == pytest.approx(data["chosen"]["step_seconds"])
    assert sum(group["count"] for group in data["schedule"]) == STEP["layers"]
    assert data["chosen"]["gradient_error"] == 0


@pytest.mark.parametrize("options", [["--save-plan", "plan.json"], ["--json", "plan.json"]])
def test_explain_shows_a_saved_plan(options, saved, plain, tmp_path, monkeypatch, capsys):
    # GIVEN a recommendation, and a plan for a budget in a file
    monkeypatch.chdir(tmp_path)
    assert told(["recommend", saved, "--gpus", "1", "--gpu", "h100", "-q"])[0] == 0
    assert told(["plan", saved, *of("rotor", plain), *options, "-q"])[0] == 0
    capsys.readouterr()
    # WHEN the file is explained  THEN it is the plan of the file, done to the step that was recommended for
    assert told(["explain", "plan.json", "--no-color", "-q"])[0] == 0
    text = capsys.readouterr().out
    assert "Plan of plan.json: " in text
    assert "remat.segments=" in text
    assert told(["explain", "plan.json", "--json", "-", "-q"])[0] == 0
    found = json.loads(capsys.readouterr().out)
    assert told(["explain", "0", "--json", "-", "-q"])[0] == 0
    assert found["peak_reserved_bytes"] < json.loads(capsys.readouterr().out)["peak_reserved_bytes"]


def test_a_budget_that_nothing_fits_names_the_least_that_something_does(saved, plain, capsys):
    # GIVEN a budget below the parameters  THEN the exit code is that of "over budget", and a budget is named
    arguments = ["plan", saved, "--planner", "rotor", "--no-compare", "--json", "-", "-q"]
    code, error = told([*arguments, "--budget", "1MiB"])
    data = json.loads(capsys.readouterr().out)
    assert code == 1
    assert error.startswith("error: no plan fits 1.0 MiB; the least budget that one fits is ")
    assert data["chosen"] is None
    assert data["least_bytes"] < plain
    # AND that one is enough
    assert told([*arguments, "--budget", str(data["least_bytes"])]) == (0, "")


def test_where_everything_fits_nothing_changes(saved, plain, capsys):
    assert told(["plan", saved, "--budget", str(2 * plain), "--no-color"]) == (0, "")
    text = capsys.readouterr().out
    assert "as it is: nothing needs to change" in text
    assert "again" not in text


def test_apply_writes_python_that_does_it_and_overwrites_nothing(saved, plain, tmp_path):
    # WHEN a plan is written as Python
    arguments = ["plan", saved, *of("chen", plain), "--apply", "apply_plan.py", "-q"]
    assert told(arguments) == (0, "")
    spec = importlib.util.spec_from_file_location("apply_plan", tmp_path / "apply_plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # THEN it says where it comes from, and computes the same gradients with less kept
    assert "planner: chen" in module.__doc__
    assert module.PLAN["remat"]["policy"] in {"full", "segments"}
    grads = []
    for do in (lambda *both: both, module.apply_plan):
        torch.manual_seed(0)
        model = sample("gpt").make_model(**SIZES, layers=STEP["layers"])
        model, _ = do(model, torch.optim.SGD(model.parameters()))
        model(torch.arange(32)[None]).logsumexp(-1).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    # AND a second time nothing is overwritten
    before = (tmp_path / "apply_plan.py").read_text()
    code, error = told(arguments)
    assert (code, "exists, and is not overwritten" in error) == (2, True)
    assert (tmp_path / "apply_plan.py").read_text() == before


def test_a_schedule_that_no_plan_expresses_is_told_and_not_written(saved, plain, only, tmp_path, capsys):
    # GIVEN a planner that predicts only
    found = Found(cost=Cost(peak_bytes=plain // 2, seconds=1.0), schedule="keep a\ncompute b again")
    only(Planner(name="paper", words="", needs="any graph", find=lambda _: found, suits=lambda _: "it does"))
    # WHEN its plan is to be written  THEN the schedule is shown, and why there is no file
    code, error = told(["plan", saved, "--budget", str(plain // 2), "--apply", "out.py", "--no-color", "-q"])
    text = capsys.readouterr().out
    assert (code, "predicted only, and nothing was written" in error) == (4, True)
    assert "compute b again" in text
    assert not (tmp_path / "out.py").exists()


def test_auto_takes_what_fits_where_nothing_suits(saved, plain, only, capsys):
    # GIVEN one planner that no structure suits, and one that does not apply
    def refuse(_):
        raise UnsupportedError("only trees")

    only(
        Planner(name="trees", words="", needs="a tree", find=refuse),
        Planner(name="all", words="", needs="blocks", find=lambda _: Found(remat=Remat(policy="full"))),
    )
    assert told(["plan", saved, "--budget", str(int(0.9 * plain)), "--json", "-", "-q"]) == (0, "")
    data = json.loads(capsys.readouterr().out)
    assert data["chosen"]["planner"] == "all"
    assert [(a["planner"], a["outcome"], a["message"]) for a in data["answers"]] == [
        ("all", "fits", ""),
        ("trees", "does_not_apply", "only trees"),
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--budget", "lots"], "'lots' is not a size"),
        (["--budget", "0"], "--budget is 0"),
        (["--planner", "roter"], "--planner is 'roter'"),
        (["--set", "remat.policy=full"], "is what is planned here"),
        (["--time-limit", "0"], "--time-limit is 0"),
        (["--verify"], "a saved trace has none"),
        (["--batch", "4"], "--batch cannot change it"),
        (["--gpu", "b9"], "b9"),
        (["--apply", "my-plan.py"], "no name of a Python module"),
        (["--apply", "nowhere/plan.py"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_one_message(wrong, words, saved):
    code, error = told(["plan", saved, *wrong])
    assert code == 2
    assert words in error
    assert error.count("error:") == 1
