"""Every kind of name resolves to a target that trains; every bad one is one message, a way out and an exit code."""

from __future__ import annotations

import pytest
import torch

from dnnmem.estimator.errors import DnnmemError
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve, split_target

GOOD = """
import torch
from torch import nn

def make_model(width: int = 8):
    return nn.Linear(4, width)

def make_batch(batch_size=2, classes=3):
    return torch.randn(batch_size, 4), torch.randint(classes, (batch_size,))

def make_loss(output, batch):
    return nn.functional.cross_entropy(output, batch[1])

class Net(nn.Linear):
    def __init__(self, width=8):
        super().__init__(4, width)

class Config:
    pass
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.py", ("file", "model.py", "")),
        ("a/b.py", ("file", "a/b.py", "")),
        ("a/b.py:Net", ("file", "a/b.py", "Net")),
        ("a.py:Outer.Inner", ("file", "a.py", "Outer.Inner")),
        ("package.module:Net", ("module", "package.module", "Net")),
        ("torchvision:resnet50", ("torchvision", "resnet50", "")),
        ("timm:resnet50.a1_in1k", ("timm", "resnet50.a1_in1k", "")),
        ("hf:folder/config.json", ("hf", "folder/config.json", "")),
        ("HF:gpt2", ("hf", "gpt2", "")),
        ("C:\\nets\\model.py", ("file", "C:\\nets\\model.py", "")),
        ("C:\\nets\\model.py:Net", ("file", "C:\\nets\\model.py", "Net")),
    ],
)
def test_a_name_says_what_kind_of_target_it_is(text, expected):
    assert split_target(text) == expected


def one_step(target):
    model, batch = target.make_model(), target.make_batch()
    target.train_step(model, batch, target.make_optimizer(model.parameters()))
    return model, batch


@pytest.mark.parametrize("name", ["model.py", "model.py:Net", "model.py:make_model"])
def test_a_file_trains_with_or_without_a_symbol(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(GOOD)
    target = resolve(Request(target=name, batch_size=5, args={"width": "16", "classes": "7"}))
    model, (images, labels) = one_step(target)
    assert model.weight.shape == (16, 4)
    assert images.shape == (5, 4)
    assert labels.max() < 7
    assert target.name == name
    assert dict(target.batch) == {"batch_size": 5, "width": 16, "classes": 7}
    assert target.user_files == (str(tmp_path),)


def test_a_target_is_rescaled_without_a_second_import(tmp_path):
    # GIVEN a file that counts its imports
    log = tmp_path / "log"
    (tmp_path / "model.py").write_text(f"open({str(log)!r}, 'a').write('x')\n" + GOOD)
    target = resolve(Request(target=str(tmp_path / "model.py")))
    # WHEN it is asked for at other sizes
    sizes = [target.rescale(size, None).make_batch()[0].shape[0] for size in (1, 7)]
    # THEN batches follow, the first target is unchanged, and the file ran once
    assert sizes == [1, 7]
    assert target.rescale(3, None).batch["batch_size"] == 3
    assert target.make_batch()[0].shape[0] == 2
    assert log.read_text() == "x"


BROKEN = {
    "syntax.py": "def make_model(:\n    pass\n",
    "raises.py": "def helper():\n    return {}['weights']\n\nhelper()\n",
    "missing.py": "import no_such_library\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "empty.py": "",
    "netonly.py": "from torch import nn\nclass Net(nn.Linear):\n    pass\n",
    "nobatch.py": "def make_model():\n    pass\n",
    "nosize.py": "def make_model():\n    pass\ndef make_batch(images):\n    pass\n",
    "nodefault.py": "def make_model():\n    pass\ndef make_batch(batch_size):\n    pass\n",
    "noseq.py": "def make_model():\n    pass\ndef make_batch(batch_size, seq_len):\n    pass\n",
    "needs.py": "def make_model(width):\n    pass\ndef make_batch(batch_size):\n    pass\n",
    "badloss.py": GOOD.replace("make_loss(output, batch)", "make_loss(output)"),
    "badoptimizer.py": GOOD + "\ndef make_optimizer():\n    pass\n",
    "badstep.py": GOOD + "\ndef train_step(model, batch):\n    pass\n",
    "number.py": "make_model = 3\n",
    "text.txt": "a model",
    "weights.pt": "",
    "run.trace.json.gz": "",
    "good.py": GOOD,
    "folder/model.py": GOOD,
    "bare/README": "",
    "config.json": "{",
    "typeless/config.json": "{}",
    "newer/config.json": '{"model_type": "gpt99"}',
}

BAD = [
    # target, other fields of the request, exit code, words of the message, words of the hint
    ("", {}, 2, "the target is empty", "model.py:symbol"),
    ("zzzzzzz.py", {}, 2, "zzzzzzz.py does not exist", "dnnmem init"),
    ("sintax.py", {}, 2, "sintax.py does not exist", "did you mean syntax.py"),
    ("good", {}, 2, "good is no file", "did you mean good.py?"),
    ("resnet50", {}, 2, "resnet50 is no file", "torchvision:resnet50"),
    ("folder", {}, 2, "folder is a folder", "model.py"),
    ("bare", {}, 2, "bare is a folder", "name the .py file"),
    ("text.txt", {}, 2, "text.txt is a .txt file", ".py file"),
    ("weights.pt", {}, 2, "weights.pt is a .pt file", ".py file"),
    ("run.trace.json.gz", {}, 2, "is a saved trace", "dnnmem profile"),
    ("syntax.py", {}, 3, "def make_model(:", "mend that line"),
    ("raises.py", {}, 3, "raises.py:2 in helper", "python raises.py"),
    ("missing.py", {}, 3, "No module named 'no_such_library'", "install no_such_library"),
    ("exits.py", {}, 3, "exits while it is imported", "__main__"),
    ("empty.py", {}, 2, "empty.py has no make_model()", "def make_model():"),
    ("netonly.py", {}, 2, "netonly.py has no make_model()", "netonly.py:Net --input"),
    ("number.py", {}, 2, "make_model in number.py is an int", "def make_model():"),
    ("nobatch.py", {"batch_size": 2}, 2, "no make_batch(batch_size)", "def make_batch(batch_size):"),
    ("nosize.py", {"batch_size": 2}, 2, "make_batch(images) in nosize.py does not take batch_size", "def make_batch"),
    ("nodefault.py", {}, 2, "no default for batch_size, and --batch is not given", "--batch 8"),
    ("noseq.py", {"batch_size": 2}, 2, "no default for seq_len, and --seq is not given", "--seq 1024"),
    ("good.py", {"seq_len": 8}, 2, "make_batch in good.py does not take seq_len", "leave --seq out"),
    ("needs.py", {"batch_size": 2}, 2, "make_model needs width", "--arg width=..."),
    ("good.py", {"args": {"widht": "3"}}, 2, "make_model takes width; make_batch takes classes", "did you mean width?"),
    ("good.py", {"args": {"width": "wide"}}, 2, "--arg width=wide: make_model wants int", "give width as int"),
    ("good.py", {"args": {"batch_size": "3"}}, 2, "has an option of its own", "--batch 3"),
    ("good.py", {"optimizer": "adamm"}, 2, "--optimizer 'adamm' is not one of sgd", "adam"),
    ("good.py", {"optimizer": "sgd:momentun=0.9"}, 2, "--optimizer momentun is not known", "did you mean momentum"),
    ("good.py", {"optimizer": "sgd:fast"}, 2, "is not name:option=value", "sgd:momentum=0.9"),
    ("badloss.py", {}, 2, "make_loss in badloss.py is called with 2 arguments", "def make_loss(output, batch):"),
    ("badoptimizer.py", {}, 2, "make_optimizer in badoptimizer.py is called with 1", "def make_optimizer(parameters):"),
    ("badstep.py", {}, 2, "train_step in badstep.py is called with 3", "def train_step(model, batch, optimizer):"),
    ("good.py:Nett", {}, 2, "good.py has no 'Nett'", "did you mean Net?"),
    ("good.py:Config", {}, 2, "Config in good.py is the class Config", "good.py:Net"),
    ("good.py:torch", {}, 2, "torch in good.py is a module", "good.py:Net"),
    ("good.py:a-b", {}, 2, "'a-b' is no name", "model.py:Net"),
    ("good.py:", {}, 2, "is no name", "model.py:Net"),
    ("netonly.py:Net", {}, 2, "no --input is given; shapes are not guessed", "make_batch"),
    ("netonly.py:Net", {"inputs": ("8,3",)}, 2, "Net needs in_features, out_features", "--arg in_features=..."),
    ("good.py:Net", {"inputs": ("8,x:fp32",)}, 2, "'x' is no size", "--input 8,3,224,224:fp32"),
    ("good.py:Net", {"inputs": ("8,4:fp99",)}, 2, "'fp99' is no element type", "--input"),
    ("good.py:Net", {"inputs": ("8,0",)}, 2, "'0' is no size", "--input"),
    ("good.py:Net", {"inputs": ("8,4",), "batch_size": 2}, 2, "--batch is 2, but the first --input has 8", "write B"),
    ("good.py:Net", {"inputs": ("B,4",)}, 2, "--batch is not given", "--batch 8"),
    ("good.py:Net", {"inputs": ("8,S",)}, 2, "--seq is not given", "--seq 1024"),
    ("good.py:Net", {"inputs": ("8,4",), "seq_len": 3}, 2, "no --input has S", "B,S:int64"),
    ("good.py:Net", {"inputs": ("x=8,4", "8,4")}, 2, "some --input have a name and some have none", "name all"),
    ("zzzzzzz.net:Net", {}, 2, "there is no module 'zzzzzzz'", "package.module:symbol"),
    ("torhc:Net", {}, 2, "there is no module 'torhc'", "did you mean torch"),
    ("torch.no_such:Net", {}, 2, "there is no module 'torch.no_such'", ""),
    ("hf:", {}, 2, "names no model", "hf:gpt2"),
    ("hf:gpt2", {}, 2, "--batch is not given", "--batch 8"),
    ("hf:gpt2", {"batch_size": 2, "inputs": ("8,4",)}, 2, "makes its own inputs", "leave --input out"),
    ("torchvision:resnet18", {"batch_size": 2, "seq_len": 8}, 2, "takes images", "leave --seq out"),
    ("hf:config.json", {"batch_size": 2}, 2, "config.json is not JSON", "config.json of transformers"),
    ("hf:typeless", {"batch_size": 2}, 2, "has no model_type", "config.json of transformers"),
    ("hf:newer", {"batch_size": 2}, 2, "model_type 'gpt99'", "pip install"),
    ("hf:bare", {"batch_size": 2}, 2, "hf:bare is", "hf:llama"),
    ("hf:./none.json", {"batch_size": 2}, 2, "hf:./none.json does not exist", "hf:folder"),
]


@pytest.mark.parametrize(("target", "fields", "exit_code", "said", "hint"), BAD)
def test_a_bad_target_is_one_message(tmp_path, monkeypatch, target, fields, exit_code, said, hint):
    # GIVEN a folder of broken files
    monkeypatch.chdir(tmp_path)
    for name, text in BROKEN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    # WHEN the target is resolved
    with pytest.raises(DnnmemError) as caught:
        resolve(Request(target=target, **fields))
    # THEN the error says what, shows the way out and has its exit code; dnnmem's own frames are never in it
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == exit_code
    assert "load.py" not in caught.value.message


HOOKS = [
    ("def make_model():\n    return helper()\ndef helper():\n    return 1 / 0\n", "make_model", "model.py:4 in helper"),
    ("def make_model():\n    return [1]\n", "make_model", "make_model returned a list"),
    ("def make_model():\n    raise SystemExit(1)\n", "make_model", "make_model failed"),
    ("def make_batch(batch_size):\n    raise ValueError('no data')\n", "make_batch", "ValueError: no data"),
    ("def make_batch(batch_size):\n    return iter([1])\n", "make_batch", "make_batch returned a list_iterator"),
    ("def make_batch(batch_size):\n    pass\n", "make_batch", "make_batch returned None"),
    ("def make_optimizer(parameters):\n    return 3\n", "make_optimizer", "make_optimizer returned an int"),
    ("def make_optimizer(parameters):\n    return {}['lr']\n", "make_optimizer", "KeyError: 'lr'"),
]


@pytest.mark.parametrize(("code", "hook", "said"), HOOKS)
def test_a_hook_that_fails_is_told_with_the_users_lines(tmp_path, monkeypatch, code, hook, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(code + GOOD.replace(f"def {hook}(", "def old("))
    target = resolve(Request(target="model.py", batch_size=2))
    with pytest.raises(DnnmemError) as caught:
        getattr(target, hook)(*([iter([torch.nn.Parameter(torch.ones(1))])] if hook == "make_optimizer" else []))
    assert said in caught.value.message
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert "load.py" not in caught.value.message
