"""Releases for other machines: what fits them is downloaded, and what one built is shared."""

import hashlib
import io
import re
import tarfile
from pathlib import Path
from typing import Any

import rig

LOCK = rig.REQUIREMENTS / "board-3.10-2026.8.0.lock"


def collect(folder: Path, machine: str, *packages: str, **options: str) -> dict[str, Any]:
    """What the module answers for a few of the locked packages."""
    blocks = re.findall(
        rf"^(?:{'|'.join(packages)})==.*?(?=^\S|\Z)", LOCK.read_text(), re.DOTALL | re.MULTILINE
    )
    lock = folder / "some.lock"
    lock.write_text("".join(blocks))
    asked = {"python": "3.10", "machine": machine, "glibc": "2.35", **options}
    return rig.release(folder / "releases", lock, **asked)


def content(answer: dict[str, Any]) -> dict[str, bytes]:
    """The files of an archive, by their path in the release."""
    with tarfile.open(answer["path"]) as tar:
        return {
            member.name.partition("/")[2]: tar.extractfile(member).read()
            for member in tar
            if member.isfile()
        }


def test_wheels_of_another_machine(tmp_path: Path) -> None:
    answer = collect(tmp_path, "aarch64", "markupsafe", "psutil")
    wheels = [name for name in content(answer) if name.startswith("wheels/")]
    assert len(wheels) == 3
    assert sum("aarch64" in name for name in wheels) == 2
    assert not answer["sources"]


def test_sources_without_tools_are_refused(tmp_path: Path) -> None:
    answer = collect(tmp_path, "armv7l", "psutil")
    assert re.fullmatch(r"no wheel for armv7l: psutil-\S+\.tar\.gz", answer["msg"])


def test_what_one_board_built_goes_to_the_others(tmp_path: Path) -> None:
    tools = str(rig.REQUIREMENTS / "tools-3.10.lock")
    first = collect(tmp_path, "armv7l", "markupsafe", "psutil", tools=tools)
    assert first["sources"]
    files = content(first)
    (source,) = [name for name in files if name.endswith(".tar.gz")]
    assert any(name.startswith("tools/setuptools-") for name in files)
    assert not collect(tmp_path, "armv7l", "markupsafe", "psutil", tools=tools)["changed"]

    # To the module a wheel is a name and a hash.
    version = source.removesuffix(".tar.gz").rpartition("-")[2]
    wheel = f"psutil-{version}-cp310-cp310-linux_armv7l.whl"
    Path(first["built"]).parent.mkdir(parents=True)
    with tarfile.open(first["built"], "w") as tar:
        member = tarfile.TarInfo(wheel)
        member.size = 5
        tar.addfile(member, io.BytesIO(b"wheel"))
    second = collect(tmp_path, "armv7l", "markupsafe", "psutil", tools=tools)
    assert (second["name"], second["sources"]) == (first["name"], False)
    files = content(second)
    assert files[f"wheels/{wheel}"] == b"wheel"
    assert source not in files
    sha = hashlib.sha256(b"wheel").hexdigest()
    pinned = f"psutil=={version} +--hash=sha256:{sha} "
    assert re.search(pinned, files["requirements.txt"].decode())
    assert not Path(first["path"]).exists()
    assert not collect(tmp_path, "armv7l", "markupsafe", "psutil", tools=tools)["changed"]
