"""Which GPU is meant, and what it can do: devices as data, from `specs/` and from a user's own file.

Every fact stands in TOML with its unit in the key and its source beside it; here it becomes bytes, seconds and flops. A
name is found without regard to case, spaces and vendor words, so what `torch.cuda.get_device_name` returns works too.

>>> device = find_device("NVIDIA GeForce RTX 4090")
>>> device.name, device.compute_capability, device.flops_per_s["bfloat16"] / 1e12
('rtx-4090-24gb', '8.9', 165.2)
>>> find_device("h100").name, find_device("mi300x").context_bytes
('h100-sxm-80gb', None)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from dnnmem.estimator.device import Device
from dnnmem.estimator.device_file import parse_devices
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.toml_values import read_file

_FILES = ("amd.toml", "nvidia.toml")
_VENDOR_WORDS = frozenset({"nvidia", "geforce", "tesla", "amd", "instinct"})


@cache
def load_devices() -> Mapping[str, Device]:
    """All packaged devices by name."""
    folder = resources.files("dnnmem.estimator") / "specs"
    texts = {name: (folder / name).read_text("utf-8") for name in _FILES}
    return {name: device for file, text in texts.items() for name, device in parse_devices(text, file).items()}


def find_device(name: str) -> Device:
    """The device called `name`: a name or alias of a packaged one, `file.toml` with one device, or `file.toml:name`.

    Raises `UsageError` for an unknown name (with the nearest ones), one that several cards share, and a faulty file.
    """
    path, _, inside = name.rpartition(":") if re.search(r"\.toml:[^/\\]*$", name) else (name, "", "")
    if path.endswith(".toml"):
        return _pick(parse_devices(read_file(path), path), inside, path)
    devices = load_devices()
    wanted = _plain(name)
    if wanted in devices:
        return devices[wanted]
    found = [device for device in devices.values() if wanted in device.aliases]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"--gpu {name} can be {', '.join(d.name for d in found)}", hint=f"name one of them: --gpu {found[-1].name}"
        )
    raise _unknown(name, wanted, devices)


def _pick(devices: Mapping[str, Device], name: str, path: str) -> Device:
    if name in devices:
        return devices[name]
    if len(devices) == 1 and not name:
        return next(iter(devices.values()))
    what = f"no device {name!r}" if name else f"{len(devices)} devices"
    raise UsageError(f"{path} has {what}; it holds {', '.join(devices) or 'none'}", hint=f"write --gpu {path}:NAME")


def _unknown(name: str, wanted: str, devices: Mapping[str, Device]) -> UsageError:
    names = {alias: device.name for device in devices.values() for alias in (device.name, *device.aliases)}
    near = dict.fromkeys(names[match] for match in difflib.get_close_matches(wanted, names, n=5, cutoff=0.5))
    return UsageError(
        f"--gpu {name} is not known" + (f"; nearest: {', '.join(near)}" if near else ""),
        hint=f"known: {', '.join(devices)}; or a file of your own: --gpu mygpu.toml",
    )


def _plain(name: str) -> str:
    words = re.split(r"[\s_-]+", name.strip().lower())
    return "-".join(word for word in words if word and word not in _VENDOR_WORDS)
