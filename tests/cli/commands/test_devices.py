import json

from dnnmem.cli.app import run
from dnnmem.estimator.devices import load_devices


def test_every_device_has_its_line(capsys):
    assert run(["devices"]) == 0

    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == list(load_devices())


def test_a_narrow_terminal_gets_what_matters(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")

    run(["devices"])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "usable", "context"]
    assert max(map(len, lines)) <= 60


def test_one_device_is_shown_in_full_with_its_sources(capsys):
    assert run(["devices", "h100"]) == 0

    text = capsys.readouterr().out
    assert "h100-sxm-80gb" in text
    assert "context_source" in text


def test_devices_as_json_are_bytes(capsys):
    assert run(["devices", "--format", "json"]) == 0

    listed = {device["name"]: device["usable_bytes"] for device in json.loads(capsys.readouterr().out)}
    assert listed == {name: device.usable_bytes for name, device in load_devices().items()}


def test_an_unknown_device_is_told_its_neighbours(capsys):
    assert run(["devices", "h1000"]) == 2

    text = capsys.readouterr().err
    assert "h1000 is not known; nearest:" in text
    assert "h100-sxm-80gb" in text


def test_an_unknown_form_is_refused(capsys):
    assert run(["devices", "--format", "md"]) == 2
    assert "--format is 'md'; it must be one of table, json" in capsys.readouterr().err
