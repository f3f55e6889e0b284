"""What a result must carry to be repeated: versions, machine, command, and fingerprints of model and code."""

import hashlib
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import foveate

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow")

DECIDING_CODE = (
    "engine/**/*.py",
    "families/**/*.py",
    "pruners/**/*.py",
    "kernels/**/*.py",
    "select/**/*.py",
    "tensors.py",
    *(f"measure/eval/{name}.py" for name in ("answers", "arms", "batch", "shared_vision", "suites")),
    "measure/loading.py",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide an answer."""
    found = {"foveate": foveate.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the run used, without anything that names the machine's owner."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def command() -> str:
    """Return the command that was given, as one types it: `foveate …`, `python benchmarks/x.py …`, `python -m …`."""
    spec, started = sys.modules["__main__"].__spec__, Path(sys.argv[0])
    module = "" if spec is None else spec.name.removesuffix(".__main__")
    if module:
        typed = ["foveate"] if module == "foveate" else ["python", "-m", module]
    elif started.suffix == ".py":  # of a script outside the current folder two names, as its path may name a person
        inside = started.resolve().is_relative_to(Path.cwd())
        path = started.resolve().relative_to(Path.cwd()) if inside else Path(*started.resolve().parts[-2:])
        typed = ["python", path.as_posix()]
    else:
        typed = [started.stem]
    return shlex.join([*typed, *sys.argv[1:]])


def model_fingerprint(model: torch.nn.Module) -> str:
    """Return a short hash of a model's weights: names, shapes, types and the head and tail of each tensor."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().reshape(-1)
        edges = torch.cat([flat[:512], flat[-512:]]).to("cpu", torch.float32)
        digest.update(edges.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def code_fingerprint() -> str:
    """Return a short hash of the code that decides which tokens are kept and how an answer is made."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for pattern in DECIDING_CODE:
        for path in sorted(root.glob(pattern)):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
