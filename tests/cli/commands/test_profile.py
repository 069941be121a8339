"""`dnnmem profile` from end to end, but for the child process, which a recorded step stands in for."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from dnnmem.cli.app import run
from dnnmem.cli.commands.deliver import against
from dnnmem.estimator import cluster
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Event, Kind, Module, Op, Origin, Phase, Storage, Trace
from dnnmem.estimator.trace_file import save_trace
from dnnmem.profilers import run as runner


def small_step(gpu=None):
    """A linear layer: its weight, its output, its gradient."""
    fc = ("fc",)
    storages = (
        Storage(id=0, nbytes=4096, kind=Kind.PARAM, shape=(32, 32), dtype="float32", module=fc, name="weight"),
        Storage(id=1, nbytes=8192, kind=Kind.ACTIVATION, shape=(64, 32), dtype="float32", module=fc, saved=True),
        Storage(id=2, nbytes=4096, kind=Kind.GRAD, shape=(32, 32), dtype="float32", module=fc, name="weight"),
    )
    forward = Op(name="aten.mm.default", module=fc, reads=(0,), writes=(1,), events=(Event(8192, 0, 1),), flops=131072)
    backward = Op(
        name="aten.mm.default", module=fc, phase=Phase.BACKWARD, reads=(1,), writes=(2,), flops=131072,
        events=(Event(4096, 0, 2), Event(-8192, 0, 1)), source="model.py:7",
    )  # fmt: skip
    step = Op(
        name="aten._fused_sgd_", module=("<optimizer>",), phase=Phase.STEP, reads=(2,), events=(Event(-4096, 0, 2),)
    )
    return Trace(
        ops=(forward, backward, step),
        storages={storage.id: storage for storage in storages},
        setup=(Event(4096, 0, 0),),
        pinned=frozenset({0}),
        modules=(Module(path=(), type="Net"), Module(path=fc, type="Linear", source="model.py:3")),
        batch={"batch_size": 64},
        origin=Origin(target="model.py", device="fake", gpu=gpu, versions={"torch": "2.9.0"}),
    )


@pytest.fixture(name="child")
def _child(monkeypatch):
    """Stands in for the child process; keeps the requests it gets."""
    requests = []

    def answer(request, *, timeout, gpu, cache, on_output, on_progress):
        assert gpu is None or gpu.name == request.gpu
        assert cache is None or cache.name == "dnnmem"
        requests.append((request, timeout))
        on_progress(1)
        on_output("loss 2.3")
        return small_step(request.gpu), Measurement()

    monkeypatch.setattr(runner, "run", answer)
    return requests


@pytest.fixture(name="saved")
def _saved(tmp_path):
    path = tmp_path / "step.trace.json.gz"
    save_trace(small_step(), Measurement(), path)
    return str(path)


def test_the_options_reach_the_request(child):
    code = run([
        "profile", "model.py", "--batch", "8", "--seq", "16", "--input", "8,3:float32", "--arg", "width=64",
        "--optimizer", "sgd", "--device", "cpu", "--gpu", "h100", "--steps", "4", "--seed", "7",
        "--repeats", "9", "--timeout", "30",
    ])  # fmt: skip

    [(request, timeout)] = child
    assert code == 0
    assert (request.target, request.batch_size, request.seq_len, request.inputs) == (
        "model.py",
        8,
        16,
        ("8,3:float32",),
    )
    assert (request.args, request.optimizer, request.device, request.gpu) == (
        {"width": "64"},
        "sgd",
        "cpu",
        "h100-sxm-80gb",
    )
    assert (request.steps, request.seed, request.repeats, timeout) == (4, 7, 9, 30.0)


def test_settings_fill_in_what_is_not_typed(child, tmp_path, monkeypatch):
    (tmp_path / "dnnmem.toml").write_text('batch = 2\nseq = 4\ndevice = "cpu"\n')
    monkeypatch.setenv("DNNMEM_SEQ", "5")

    run(["profile", "model.py", "--device", "fake"])

    [(request, _)] = child
    assert (request.batch_size, request.seq_len, request.device) == (2, 5, "fake")


@pytest.mark.usefixtures("child")
def test_the_table_goes_to_stdout_and_the_models_words_to_stderr(capsys):
    assert run(["profile", "model.py"]) == 0

    told = capsys.readouterr()
    assert told.out.startswith("model.py  batch_size 64\n")
    assert "total          16.0 KiB  100.0 %" in told.out
    assert told.err == "loss 2.3\n"
    assert "\x1b" not in told.out


@pytest.mark.usefixtures("child")
def test_quiet_is_quiet(capsys, tmp_path):
    run(["profile", "model.py", "--quiet", "--json", "a.json", "--save", "a.trace.json.gz"])

    assert capsys.readouterr().err == ""
    assert (tmp_path / "a.json").exists()


@pytest.mark.usefixtures("child")
def test_json_on_stdout_is_pure(capsys):
    assert run(["profile", "model.py", "--json", "-"]) == 0

    value = json.loads(capsys.readouterr().out)
    assert value["total_bytes"] == 16384
    assert value["timeline"]["phases"] == [["forward", 0], ["backward", 2], ["step", 4]]


@pytest.mark.usefixtures("child")
def test_csv_on_stdout_is_pure(capsys):
    assert run(["profile", "model.py", "--format", "csv"]) == 0

    assert [line["module"] for line in csv.DictReader(io.StringIO(capsys.readouterr().out))] == ["fc", "<optimizer>"]


@pytest.mark.usefixtures("child")
def test_markdown_on_stdout(capsys):
    run(["profile", "model.py", "--format", "md"])

    assert capsys.readouterr().out.startswith("### dnnmem profile: model.py")


@pytest.mark.usefixtures("child")
def test_files_are_written_beside_the_table_and_named(capsys, tmp_path):
    run(["profile", "model.py", "--json", "a.json", "--csv", "a.csv", "--save", "a.trace.json.gz"])

    told = capsys.readouterr()
    assert "Layers" in told.out
    assert told.err.splitlines() == ["loss 2.3", "wrote a.trace.json.gz", "wrote a.json", "wrote a.csv"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.csv", "a.trace.json.gz"}


def test_a_saved_trace_gives_the_same_report_without_a_child(child, capsys):
    run(["profile", "model.py", "--json", "-", "--save", "a.trace.json.gz"])
    first = json.loads(capsys.readouterr().out)

    assert run(["profile", "a.trace.json.gz", "--json", "-"]) == 0

    assert json.loads(capsys.readouterr().out) == first
    assert len(child) == 1


def test_a_saved_trace_is_held_against_a_gpu(saved, capsys):
    assert run(["profile", saved, "--gpu", "a100-sxm-80gb", "--json", "-"]) == 0

    value = json.loads(capsys.readouterr().out)
    assert value["fits"] is True
    assert value["usable_bytes"] == find_device("a100-sxm-80gb").usable_bytes
    assert value["parts"]["fragmentation"] is not None


def test_another_gpu_than_the_recorded_one_is_noted():
    trace, device = against(small_step("a100-sxm-80gb"), find_device("h100"))

    assert device.name == trace.origin.gpu == "h100-sxm-80gb"
    assert trace.origin.notes[-1].startswith("The step was recorded on a100-sxm-80gb")


def test_the_recorded_gpu_counts_if_none_is_named():
    assert against(small_step("a100-sxm-80gb"), None)[1].name == "a100-sxm-80gb"
    assert against(small_step("a gpu of their own"), None)[1] is None


REFUSED = [
    (["--batch", "0"], "--batch is 0; a batch has at least 1 sample"),
    (["--batch", "-3"], "--batch is -3"),
    (["--seq", "0"], "--seq is 0; a sequence has at least 1 token"),
    (["--steps", "1"], "--steps is 1; optimizer state appears in the first step"),
    (["--repeats", "0"], "--repeats is 0"),
    (["--timeout", "0"], "--timeout is 0.0; the time to wait must be more than 0 seconds"),
    (["--timeout", "nan"], "--timeout is nan"),
    (["--depth", "0"], "--depth is 0; the model's own children have depth 1"),
    (["--depth", "2", "--all"], "--depth and --all contradict each other"),
    (["--arg", "width"], "--arg 'width' is not name=value"),
    (["--arg", "=3"], "--arg '=3' is not name=value"),
    (["--arg", "a=1", "--arg", "a=2"], "--arg a is given twice"),
    (["--device", "gpu"], "--device is 'gpu'; it must be one of auto, cpu, fake, virtual, cuda"),
    (["--gpu", "h1000"], "--gpu h1000 is not known; nearest:"),
    (["--gpu", "no.toml"], "no.toml cannot be read"),
    (["--format", "html"], "--format is 'html'"),
    (["--json", "-", "--csv", "-"], "both want stdout"),
    (["--json", "no/a.json"], "--json no/a.json: there is no folder no"),
    (["--csv", "."], "--csv . is a folder, not a file"),
    (["--save", "step.json"], "--save step.json: the name of a saved trace ends with .trace.json.gz"),
    (["--save", "no/a.trace.json.gz"], "there is no folder no"),
]


@pytest.mark.parametrize(
    ("options", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_cannot_work_is_refused_before_the_child_starts(child, capsys, options, message):
    assert run(["profile", "model.py", *options]) == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert message in told.err
    assert "Traceback" not in told.err
    assert child == []


@pytest.mark.usefixtures("child")
def test_an_empty_target_is_refused(capsys):
    assert run(["profile", ""]) == 2
    assert "TARGET is empty" in capsys.readouterr().err


@pytest.mark.usefixtures("child")
def test_a_bad_setting_says_where_it_stands(capsys, monkeypatch):
    monkeypatch.setenv("DNNMEM_BATCH", "0")

    assert run(["profile", "model.py"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].strip() == "--batch comes from DNNMEM_BATCH"


@pytest.mark.parametrize("option", [["--batch", "8"], ["--arg", "a=1"], ["--device", "cpu"], ["--seed", "1"]])
def test_a_recorded_step_cannot_be_changed(saved, capsys, option):
    assert run(["profile", saved, *option]) == 2
    assert f"is a recorded step: {option[0]} cannot change it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(b"{"), gzip.compress(b"[]"), gzip.compress(b'{"schema": "dnnmem.trace/99"}')],
    ids=["empty", "no gzip", "no JSON", "no object", "newer"],
)
def test_a_broken_trace_file_is_one_error(tmp_path, capsys, content):
    (tmp_path / "a.trace.json.gz").write_bytes(content)

    assert run(["profile", "a.trace.json.gz"]) == 2

    told = capsys.readouterr().err
    assert told.startswith("error: a.trace.json.gz")
    assert "Traceback" not in told


def test_a_missing_trace_file_is_one_error(capsys):
    assert run(["profile", "no.trace.json.gz"]) == 2
    assert capsys.readouterr().err.startswith("error: no.trace.json.gz")


def test_a_gpu_of_a_file_of_ones_own_reaches_the_child(child, tmp_path, monkeypatch):
    # GIVEN a TOML file that describes a card under a name of its own
    monkeypatch.chdir(tmp_path)
    source = (Path(cluster.__file__).parent / "specs" / "nvidia.toml").read_text()
    table = source[source.index("[a10g]") :].split("\n[", 1)[0].replace("[a10g]", "[mycard]")
    lines = [line for line in table.splitlines() if not line.startswith(("aliases", "torch_names"))]
    Path("my.toml").write_text("\n".join(lines))
    # WHEN it is named  THEN the request says both, the file so that any folder finds it
    assert run(["profile", "model.py", "--batch", "8", "--gpu", "my.toml"]) == 0
    [(request, _)] = child
    assert (request.gpu, request.gpu_file) == ("mycard", str(tmp_path / "my.toml"))
