"""Tracebacks show the user's lines, and no others."""

from __future__ import annotations

import json
import runpy
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from dnnmem.profilers.targets import frames
from dnnmem.profilers.targets.frames import is_user_file, trim_traceback


def error_of(path):
    try:
        runpy.run_path(str(path))
    except Exception as error:  # noqa: BLE001  # any error of the file
        return error
    raise AssertionError(path)


def test_only_the_users_frames_remain(tmp_path, monkeypatch):
    # GIVEN a model whose shapes do not fit, with a helper beside it
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(
        "import torch, sys\nsys.path.insert(0, '.')\nimport layers_beside\n\n"
        "def forward(x):\n    return layers_beside.project(x)\n\nforward(torch.ones(2, 3))\n"
    )
    (tmp_path / "layers_beside.py").write_text(
        "from torch import nn\n\ndef project(x):\n    return nn.Linear(4, 5)(x)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    # WHEN its error is trimmed to its folder
    lines = trim_traceback(error_of(tmp_path / "model.py"), [str(tmp_path)]).splitlines()
    # THEN both files are there with their lines, torch's are not, and the reason is last
    assert lines[:-1] == [
        "model.py:8 in <module>",
        "    forward(torch.ones(2, 3))",
        "model.py:6 in forward",
        "    return layers_beside.project(x)",
        "layers_beside.py:4 in project",
        "    return nn.Linear(4, 5)(x)",
    ]
    assert lines[-1].startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")


def test_endless_recursion_is_cut(tmp_path):
    (tmp_path / "model.py").write_text("def f():\n    return f()\nf()\n")
    text = trim_traceback(error_of(tmp_path / "model.py"), [str(tmp_path)])
    assert "more of your frames above" in text
    assert len(text.splitlines()) == 2 * frames.FRAMES_SHOWN + 2


def test_a_syntax_error_shows_its_line(tmp_path):
    (tmp_path / "model.py").write_text("x = 1\ndef f(:\n")
    text = trim_traceback(error_of(tmp_path / "model.py"), [])
    assert "line 2" in text
    assert "def f(:" in text


def test_without_frames_of_the_user_the_error_alone_is_told():
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert trim_traceback(caught.value, ["/nowhere"]).splitlines()[-1].startswith("json.decoder.JSONDecodeError")


@pytest.mark.parametrize(
    ("file", "root", "expected"),
    [
        ("/home/me/model.py", "/home/me", True),
        ("/home/me/lib/layers.py", "/home/me", True),
        ("/home/me/model.py", "/home/me/model.py", True),
        ("/home/you/model.py", "/home/me", False),
        ("/home/me2/model.py", "/home/me", False),
        ("/home/me/venv/lib/python3.12/site-packages/torch/nn/module.py", "/home/me", False),
        ("<string>", "/home/me", False),
        (torch.__file__, "/", False),
        (frames.__file__, "/", False),
        (sysconfig.get_paths()["stdlib"] + "/json/decoder.py", "/", False),
        ("/venv/site-packages/their_net/model.py", "/venv/site-packages/their_net", True),
    ],
)
def test_what_counts_as_the_users_file(file, root, expected):
    assert is_user_file(str(Path(file)), [root]) is expected
