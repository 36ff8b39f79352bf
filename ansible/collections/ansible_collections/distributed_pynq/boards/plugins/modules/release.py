"""Collect what a machine without internet needs. Runs on the control machine."""

import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: release
short_description: Collect what a machine without internet needs into one archive
description:
  - Runs on the control machine. The archive holds a wheelhouse with hashes and, for boards, the
    parameter sets and the source of the runtime, BNN-PYNQ or finn-examples.
  - The archive's name says what went into it. One that is there already is not collected again.
options:
  folder:
    description: Where archives are kept.
    type: path
    required: true
  package:
    description: Source folder of our own package.
    type: path
    required: true
  lock:
    description: Locked requirements with hashes.
    type: path
    required: true
  python:
    description: Version of Python that installs it, as C(3.6).
    type: str
    required: true
  machine:
    description: Machine that installs it, as C(armv7l).
    type: str
    required: true
  glibc:
    description: Version of glibc there, as C(2.27), which decides which wheels fit.
    type: str
    required: true
  files:
    description: Files that go into the archive as they are, by their name there.
    type: dict
    default: {}
  parameters:
    description: Parameter sets, as folders or archives with C(SET/NETWORK/classes.txt) in them.
    type: list
    elements: path
    default: []
  runtime:
    description: The runtime's source, as a local archive or a git URL; nothing leaves it out.
    type: str
    default: ""
  runtime_version:
    description: Commit to take where O(runtime) is a git URL.
    type: str
    default: HEAD
  bitfiles:
    description:
      - Folder of the archives that C(bitfiles.zip.link) in the source of finn-examples names, as
        C(Pynq-Z1.zip); their MD5 sums must be those in there. Its setup would download them.
    type: path
    default: ""
author:
  - Distributed PYNQ
"""

EXAMPLES = r"""
- name: Collect what boards of this kind need
  distributed_pynq.boards.release:
    folder: .deploy/inventory/releases
    package: app
    lock: app/requirements/board-3.6-2021.3.0.lock
    python: "3.6"
    machine: armv7l
    glibc: "2.27"
  delegate_to: localhost
"""

RETURN = r"""
name:
  description: Name of the release.
  returned: success
  type: str
path:
  description: The archive.
  returned: success
  type: path
runtime:
  description: What identifies the runtime's source, or nothing.
  returned: success
  type: str
distributed:
  description: Version of Dask's distributed in the lock.
  returned: success
  type: str
"""

# Each manylinux tag by the glibc it needs; later ones carry the version in their name.
LEGACY_TAGS = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}


def platforms(machine, glibc):
    """Tags of the binary wheels that fit, newest first, as for ("x86_64", "2.17")."""
    newest = int(glibc.split(".")[1])
    for minor in range(newest, 4, -1):
        yield f"manylinux_2_{minor}_{machine}"
        if minor in LEGACY_TAGS:
            yield f"{LEGACY_TAGS[minor]}_{machine}"
    yield f"linux_{machine}"


def sources(package):
    """Files that our own wheel is made of."""
    yield package / "pyproject.toml"
    for path in sorted((package / "distributed_pynq").rglob("*")):
        if path.is_file() and not any(part.startswith((".", "__pycache")) for part in path.parts):
            yield path


def files_under(path):
    """A file itself, or the files of a folder."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def digest(paths):
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def hashed(wheel):
    """The hash of a file, as a requirement states it."""
    return f" --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


class Collector:
    """Fills a folder with what goes into the archive."""

    def __init__(self, module, folder):
        self.module = module
        self.folder = folder
        self.asked = module.params

    def run(self, *command, **options):
        """Run a command; the module fails with what it printed last."""
        code, printed, errors = self.module.run_command(list(command), **options)
        if code:
            lines = [line for line in (printed + errors).splitlines() if line.strip()]
            self.module.fail_json(msg="{}: {}".format(command[0], "\n".join(lines[-5:])))
        return printed

    def wheels(self):
        """Download the locked wheels, build those that are only to be had as (pure) source, and our
        own; requirements.txt names all with hashes.
        """
        wheels = self.folder / "wheels"
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        tags = platforms(self.asked["machine"], self.asked["glibc"])
        self.run(
            *(*pip, "download", "--dest", str(wheels), "--no-deps"),
            *("--require-hashes", "--requirement", self.asked["lock"]),
            *("--python-version", self.asked["python"]),
            *(option for tag in tags for option in ("--platform", tag)),
        )
        package = Path(self.asked["package"])
        with tempfile.TemporaryDirectory() as scratch:
            for path in sources(package):
                target = Path(scratch, path.relative_to(package))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            self.run(*pip, "wheel", "--wheel-dir", str(wheels), "--no-deps", scratch)
        requirements = Path(self.asked["lock"]).read_text().rstrip() + "\n"
        for source in wheels.glob("*.tar.gz"):
            self.run(*pip, "wheel", "--wheel-dir", str(wheels), "--no-deps", str(source))
            name, version = source.name[: -len(".tar.gz")].rsplit("-", 1)
            built = next(wheels.glob(f"{name}-{version}-*.whl"))
            if not built.stem.endswith("-none-any"):
                self.module.fail_json(msg=f"{source.name}: no wheel for {self.asked['machine']}")
            source.unlink()
            pinned = f"{name}=={version}"
            requirements = requirements.replace(pinned, pinned + hashed(built), 1)
        own = next(wheels.glob("distributed_pynq-*.whl"))
        requirements += f"distributed-pynq=={own.name.split('-')[1]}{hashed(own)}\n"
        (self.folder / "requirements.txt").write_text(requirements)

    def files(self):
        """Copy single files."""
        for name, path in self.asked["files"].items():
            shutil.copy(path, self.folder / name)

    def parameters(self):
        """Unpack or copy the parameter sets."""
        for path in map(Path, self.asked["parameters"]):
            target = self.folder / "params"
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                with tarfile.open(path) as archive:
                    archive.extractall(target, filter="data")

    def runtime(self):
        """Fetch the runtime's source as runtime.tar.gz, with all that its setup would download."""
        source = self.asked["runtime"]
        if not source:
            return
        target = self.folder / "runtime.tar.gz"
        if Path(source).is_file():
            shutil.copy(source, target)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                self.run("git", "clone", "--quiet", "--no-checkout", source, scratch)
                self.run(
                    *("git", "-C", scratch, "archive", "--format=tar.gz", "--prefix=runtime/"),
                    *("--output", str(target), self.asked["runtime_version"]),
                )
        with tarfile.open(target) as tar:
            links = [name for name in tar.getnames() if name.endswith("/bitfiles.zip.link")]
            if links:
                linked = json.load(tar.extractfile(links[0]))
                self.carry_bitfiles(target, links[0], linked)

    def carry_bitfiles(self, source, link, linked):
        """Put bitfiles into a source in place of a link {platform: {"url": ..., "md5sum": ...}}.

        For LINK.link the setup of finn-examples unpacks to LINK.d/PLATFORM what it downloads.
        """
        folder = Path(self.asked["bitfiles"] or "none given")
        archives = sorted(folder.glob("*.zip"))
        if not archives:
            wanted = ", ".join("{}.zip ({})".format(*pair) for pair in _urls(linked))
            self.module.fail_json(msg=f"bitfiles: {folder}: no archives, expected some of {wanted}")
        changed = source.with_suffix(".changed")
        with tarfile.open(source) as old, tarfile.open(changed, "w:gz") as new:
            for member in old:
                if not member.name.endswith(".link"):
                    new.addfile(member, old.extractfile(member) if member.isfile() else None)
            for archive in archives:
                self.check(archive, linked)
                with zipfile.ZipFile(archive) as bitfiles:
                    for bitfile in filter(lambda info: not info.is_dir(), bitfiles.infolist()):
                        name = link[: -len(".link")] + ".d/" + archive.stem
                        member = tarfile.TarInfo(f"{name}/{bitfile.filename}")
                        member.size = bitfile.file_size
                        new.addfile(member, bitfiles.open(bitfile))
        os.replace(changed, source)

    def check(self, archive, linked):
        """Fail unless an archive of bitfiles is the one that the source names."""
        expected = linked.get(archive.stem, {}).get("md5sum")
        if expected is None:
            self.module.fail_json(msg=f"{archive}: expected one of {', '.join(sorted(linked))}")
        found = hashlib.md5(archive.read_bytes()).hexdigest()
        if found != expected:
            self.module.fail_json(msg=f"{archive}: its MD5 sum is {found}, expected {expected}")


def _urls(linked):
    """Platforms of a link, and where their archives are."""
    return sorted((platform, place["url"]) for platform, place in linked.items())


def main():
    """The module."""
    module = AnsibleModule(
        {
            "folder": {"type": "path", "required": True},
            "package": {"type": "path", "required": True},
            "lock": {"type": "path", "required": True},
            "python": {"type": "str", "required": True},
            "machine": {"type": "str", "required": True},
            "glibc": {"type": "str", "required": True},
            "files": {"type": "dict", "default": {}},
            "parameters": {"type": "list", "elements": "path", "default": []},
            "runtime": {"type": "str", "default": ""},
            "runtime_version": {"type": "str", "default": "HEAD"},
            "bitfiles": {"type": "path", "default": ""},
        },
        supports_check_mode=False,
    )
    asked = module.params
    paths = [Path(asked["lock"]), *map(Path, asked["files"].values())]
    paths += [file for path in asked["parameters"] for file in files_under(Path(path))]
    for path in [*paths, *map(Path, asked["parameters"])]:
        if not path.exists():
            module.fail_json(msg=f"{path}: no such file")
    package = Path(asked["package"])
    runtime = asked["runtime"] and "{}@{}".format(asked["runtime"], asked["runtime_version"])
    if asked["runtime"] and "://" not in asked["runtime"]:
        if not Path(asked["runtime"]).is_file():
            module.fail_json(msg="{}: no such archive of the runtime".format(asked["runtime"]))
        runtime = digest([Path(asked["runtime"])])
    if asked["bitfiles"]:
        runtime += "+" + digest(files_under(Path(asked["bitfiles"])))
    parts = [asked["python"], asked["machine"], asked["glibc"], runtime]
    parts.append(digest([*paths, *sources(package)]))
    version = re.search(
        r'__version__ = "(.+?)"', (package / "distributed_pynq/__init__.py").read_text()
    ).group(1)
    name = f"{version}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]}"
    folder = Path(asked["folder"])
    archive = folder / f"{name}.tar"
    changed = not archive.exists()
    if changed:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            collected = Path(scratch, name)
            collected.mkdir()
            collector = Collector(module, collected)
            collector.wheels()
            collector.files()
            collector.parameters()
            collector.runtime()
            part = Path(scratch, "archive")
            with tarfile.open(part, "w") as tar:
                tar.add(collected, name)
            os.replace(part, archive)
    pinned = re.search(r"^distributed==(\S+)", Path(asked["lock"]).read_text(), re.MULTILINE)
    module.exit_json(
        changed=changed,
        name=name,
        path=str(archive),
        runtime=runtime,
        distributed=pinned.group(1) if pinned else "",
    )


if __name__ == "__main__":
    main()
