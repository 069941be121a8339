"""The options of `dnnmem profile`: names and help in one place, since later commands share most of them.

Defaults stand in the help text only: an option that is not given is None, and `cli/config.py` decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        show_default=False,
        help="What to train: model.py, model.py:symbol, package.module:symbol, torchvision:resnet50, "
        "timm:vit_base_patch16_224, hf:gpt2 (a model type, a config.json or its folder), or a saved *.trace.json.gz.",
    ),
]
Batch = Annotated[int | None, typer.Option("--batch", "-b", metavar="N", help="Samples in a batch.")]
Seq = Annotated[int | None, typer.Option("--seq", metavar="N", help="Tokens in a sequence.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="SHAPE:DTYPE", help="An input of the model: 8,3,224,224:float32. May be repeated."),
]
Args = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="NAME=VALUE", help="An argument for make_model and make_batch. May be repeated."),
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer", metavar="NAME", help="For targets that bring none: adamw, sgd:momentum=0.9. [default: adamw]"
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="Where to run: auto, cpu, fake, virtual or cuda. [default: auto]"),
]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help="The GPU it has to fit into; `dnnmem devices` lists them."),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", help="Steps to run, 2 or more; the last counts. Default: 2 on fake, else 3."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of weights and inputs. [default: 0]")]
Repeats = Annotated[int | None, typer.Option("--repeats", metavar="N", help="Timed steps on cuda; the median counts.")]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this long.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the whole profile as JSON.")]
Csv = Annotated[str | None, typer.Option("--csv", metavar="FILE|-", help="Write the layers as CSV.")]
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write the report as one HTML page.")]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help="What stdout gets: table, json, csv or md. [default: table]"),
]
Save = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE", help="Save the recorded step as FILE.trace.json.gz, a TARGET for later."),
]
Depth = Annotated[
    int | None, typer.Option("--depth", metavar="N", help="Sum modules deeper than N names into their parents.")
]
All = Annotated[bool, typer.Option("--all", help="Every module on its own line, repeated blocks unfolded.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and nothing of what the model's code prints.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colour; NO_COLOR in the environment does the same.")]
