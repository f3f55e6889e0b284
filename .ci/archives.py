"""What is in the built archives: everything that foveate needs, nothing else, and the same by both ways.

python .ci/archives.py SDIST WHEEL_OF_THE_SDIST WHEEL_OF_THE_CHECKOUT
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

REPOSITORY = "https://github.com/foveate/foveate"
NEEDED = {
    "foveate/py.typed",
    "foveate/families/tested.json",
    "foveate/tiny/weights/many.safetensors",
    "foveate/tiny/weights/model.safetensors",
    "foveate/tiny/weights/tokenizer.json",
    "foveate/tiny/predictor/model.safetensors",
}


def wheel(path: str) -> dict[str, str]:
    """Name and hash of each file; of RECORD the name alone, for it lists the others."""
    with zipfile.ZipFile(path) as archive:
        return {
            name: "" if name.endswith("/RECORD") else hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
        }


def metadata(path: str) -> str:
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return archive.read(name).decode()


def main(sdist: str, built: str, direct: str) -> None:
    problems = []
    tracked = set(subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n"))
    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    problems += [f"in the sdist, but not in git: {name}" for name in sorted(names - tracked - {"PKG-INFO"})]
    released = {name for name in tracked if name}
    problems += [f"in git, but not in the sdist: {name}" for name in sorted(released - names)]

    ours, theirs = wheel(built), wheel(direct)
    problems += [
        f"the wheel of the sdist differs from that of the checkout: {name}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    found = {name for name in ours if ".dist-info/" not in name}
    problems += [f"in the wheel, but not in src: {name}" for name in sorted(found - package)]
    problems += [f"in src, but not in the wheel: {name}" for name in sorted(package | NEEDED) if name not in found]
    problems += [f"empty in the wheel: {name}" for name in NEEDED - {"foveate/py.typed"} if not _size(built, name)]

    about = metadata(built)
    urls = re.findall(r"^Project-URL: (\w+), (.*)$", about, flags=re.MULTILINE)
    wanted = {"Repository", "Documentation", "Issues", "Changelog"}
    problems += [f"no project URL for {name}" for name in wanted - {name for name, _ in urls}]
    problems += [f"a project URL that leads elsewhere: {url}" for _, url in urls if not url.startswith(REPOSITORY)]
    relative = re.findall(r"\]\((?!https?://|#)([^)\s]*)", re.sub(r"```.*?```", "", about, flags=re.DOTALL))
    problems += [f"a relative link in the long description: {target}" for target in relative]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{Path(sdist).name}: {len(names)} files; {Path(built).name}: {len(ours)} files, of either way the same")


def _size(path: str, name: str) -> int:
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo(name).file_size if name in archive.namelist() else 1  # missing is said above


if __name__ == "__main__":
    main(*sys.argv[1:])
