from __future__ import annotations

import io
import json

import jsonschema
import pytest

import dnnmem
from dnnmem.cli.app import run
from dnnmem.cli.recommend_run import Asked, ask
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace_file import save_trace
from tests.estimator.passes.steps import gpt


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("recommend") / "gpt.trace.json.gz"
    save_trace(gpt(3), Measurement(), path)
    return str(path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(arguments):
    """Exit code and what stderr said."""
    return run(arguments, stderr=(text := io.StringIO())), text.getvalue()


def test_plans_are_ranked_on_the_terminal(saved, project, capsys):
    # GIVEN a saved step  WHEN plans for it are asked for  THEN the best one, the table and the reasons are told
    code, error = told(["recommend", saved, "--gpus", "8", "--gpu", "h100", "--top", "3", "--no-color"])
    text = capsys.readouterr().out
    assert (code, error) == (0, "")
    assert "plans considered in" in text
    assert "BEST: " in text
    assert "now" in text
    assert "\n1  " in text
    assert " It " in text
    assert (project / ".dnnmem/recommend/report.json").exists()


def test_json_is_what_its_schema_says(saved, project, capsys, root):
    # GIVEN a saved step  WHEN its plans are asked for as JSON, with files  THEN both hold the same plans
    arguments = ["--gpus", "4", "--gpu", "h100", "--top", "3", "--json", "-", "--save-plans", "plans", "-q"]
    assert told(["recommend", saved, *arguments])[0] == 0
    data = json.loads(capsys.readouterr().out)
    jsonschema.validate(data, json.loads((root / "src/dnnmem/schemas/recommend-1.schema.json").read_text()))
    assert [c["rank"] for c in data["candidates"]] == [1, 2, 3]
    for candidate in data["candidates"]:
        assert sum(candidate["breakdown"].values()) == pytest.approx(candidate["step_seconds"])
        file = json.loads((project / f"plans/plan-{candidate['rank']}.json").read_text())
        assert {"schema": "dnnmem.plan/1", **candidate["plan"]} == file


def test_explain_shows_a_plan_and_what_another_choice_makes_of_it(saved, project, capsys):
    # GIVEN a recommendation  WHEN a plan of it is explained  THEN it has the price that it was ranked by
    assert told(["recommend", saved, "--gpus", "2", "--gpu", "h100", "--json", "report.json", "-q"])[0] == 0
    capsys.readouterr()
    assert told(["explain", "1", "--json", "-", "-q"])[0] == 0
    found = json.loads(capsys.readouterr().out)
    ranked = json.loads((project / "report.json").read_text())["candidates"][0]
    assert found["step_seconds"] == ranked["step_seconds"]
    assert found["peak_reserved_bytes"] == ranked["peak_reserved_bytes"]
    assert told(["explain", "1", "--what-if", "remat.policy=full", "--no-color"])[0] == 0
    text = capsys.readouterr().out
    assert "What if: remat.policy=full" in text
    assert "difference" in text


@pytest.mark.usefixtures("project")
def test_a_rank_stands_for_its_plan(saved, capsys):
    # GIVEN a recommendation  WHEN its first plan is exported by rank, and by file  THEN both say the same plan
    options = ["--gpus", "2", "--gpu", "h100", "--save-plans", "plans", "-q", "--top", "1"]
    assert told(["recommend", saved, *options])[0] == 0
    capsys.readouterr()
    texts = []
    for plan in ("1", "plans/plan-1.json"):
        assert told(["export", "--plan", plan, "--to", "torchrun", "-q"])[0] == 0
        texts.append(capsys.readouterr().out)
    assert [line for line in texts[0].splitlines() if "written by" not in line] == [
        line for line in texts[1].splitlines() if "written by" not in line
    ]
    assert "mesh.dp_" in texts[0]
    code, error = told(["export", "--plan", ".dnnmem/recommend/report.json", "--to", "torchrun"])
    assert code == 2
    assert "--plan 1 takes a rank" in error


@pytest.mark.usefixtures("project")
def test_gains_below_what_the_model_knows_are_none(saved, capsys):
    # GIVEN plans that the time model can hardly tell apart  WHEN they are told  THEN nobody is sold a hundredth
    assert told(["recommend", saved, "--gpus", "2", "--gpu", "h100", "--no-color"])[0] == 0
    text = capsys.readouterr().out
    assert "1.0" not in text.partition("note: ")[0].partition("BEST")[2].partition("\n\n")[0]
    assert "1.01 times" not in text
    assert "As fast" in text


@pytest.mark.usefixtures("project")
def test_what_precision_would_give_is_told_once(saved, capsys):
    # GIVEN a step in float32  WHEN precision is not allowed, and when it is  THEN one line offers it, or none
    offers = []
    for options in ([], ["--without", "precision"]):
        assert told(["recommend", saved, "--gpus", "2", "--gpu", "h100", "--json", "-", "-q", *options])[0] == 0
        offers.append([note for note in json.loads(capsys.readouterr().out)["notes"] if "--allow precision" in note])
    assert len(offers[0]) <= 1
    assert not offers[1]


@pytest.mark.usefixtures("project")
def test_explain_without_a_recommendation_says_how_to_make_one():
    code, error = told(["explain", "1"])
    assert code == 2
    assert "no recommendation" in error
    assert "dnnmem recommend" in error


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"objective": "luck"}, "throughput"),
        ({"executor": "luck"}, "ray"),
        ({"headroom": "lots"}, "5%"),
        ({"tokens": 4096}, "--seq"),
        ({"tokens": 4096, "seq": 1000}, "whole number"),
        ({"gpu": "h100", "cluster": "h100:8"}, "both"),
        ({"top": 0}, "--top is 0; it is 1 or more"),
        ({"verify": -1}, "--verify is -1; it is 0 or more"),
    ],
)
def test_what_contradicts_itself_is_refused(wrong, words):
    with pytest.raises(UsageError) as error:
        ask(Asked(target="model.py", **wrong))
    assert words in error.value.message + error.value.hint


def test_tokens_are_a_global_batch():
    assert ask(Asked(target="model.py", gpu="h100", gpus=8, tokens=65536, seq=1024)).global_batch == 64


@pytest.mark.usefixtures("project")
def test_python_has_the_same_answer(saved, capsys):
    # GIVEN the command's best plan  WHEN Python asks the same  THEN it is the same plan
    assert told(["recommend", saved, "--gpus", "2", "--gpu", "h100", "--json", "-", "-q", "--top", "1"])[0] == 0
    told_by_command = json.loads(capsys.readouterr().out)["candidates"][0]
    report = dnnmem.recommend(gpt(3), cluster="h100:2", top=1)
    assert report.candidates[0].estimate.step_seconds == told_by_command["step_seconds"]


def test_plans_that_are_alike_have_one_line_unless_all_are_asked_for(saved, project, capsys):
    # GIVEN a recommendation with plans that nobody would choose between
    arguments = ["recommend", saved, "--gpus", "8", "--gpu", "h100", "--no-color", "--json", "report.json"]
    assert told([*arguments, "--all"])[0] == 0
    all_ = capsys.readouterr().out
    assert told(arguments)[0] == 0
    few = capsys.readouterr().out
    # THEN some are named in the line of another one, and --all has a line for each
    assert "also" in few
    assert "also" not in all_
    assert len(few.splitlines()) < len(all_.splitlines())
    # AND the file has them all
    assert len(json.loads((project / "report.json").read_text())["candidates"]) == 10


def test_what_if_may_change_several_choices_and_leaves_the_ranked_plan_alone(saved, project, capsys):
    # GIVEN a recommendation
    assert told(["recommend", saved, "--gpus", "2", "--gpu", "h100", "-q"])[0] == 0
    capsys.readouterr()
    # WHEN two choices are changed, and the plan is written
    two = ["--what-if", "remat.policy=full", "--what-if", "optimizer.kernel=fused"]
    assert told(["explain", "0", *two, "--plan-out", "other.json", "--json", "-", "-q"])[0] == 0
    other = json.loads(capsys.readouterr().out)
    # THEN the price and the file are those of the changed plan, with more flops of recomputation and less memory
    assert told(["explain", "0", "--json", "-", "-q"])[0] == 0
    plain = json.loads(capsys.readouterr().out)
    assert other["peak_allocated_bytes"] < plain["peak_allocated_bytes"]
    written = json.loads((project / "other.json").read_text())
    assert written["remat"]["policy"] == "full"
    assert written["optimizer"]["kernel"] == "fused"
    # AND the price is that which `estimate` gives the same plan
    assert told(["estimate", saved, "--plan", "other.json", "--cluster", "h100:2", "--json", "-", "-q"])[0] == 0
    assert json.loads(capsys.readouterr().out)["step_seconds"] == other["step_seconds"]


@pytest.mark.parametrize(
    ("wrong", "words"), [("remat.policy=always", "always"), ("luck=1", "luck"), ("batch.micro_batch=3", "recorded at")]
)
@pytest.mark.usefixtures("project")
def test_what_if_refuses_what_is_no_choice(wrong, words, saved, capsys):
    assert told(["recommend", saved, "--gpus", "2", "--gpu", "h100", "-q"])[0] == 0
    capsys.readouterr()
    code, error = told(["explain", "1", "--what-if", wrong])
    assert code == 2
    assert words in error
