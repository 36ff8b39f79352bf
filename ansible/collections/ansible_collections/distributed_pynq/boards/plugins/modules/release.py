"""Collect what a machine without internet needs. Runs on the control machine."""

import hashlib
import io
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
    parameter sets and the runtime, BNN-PYNQ as source or finn-examples as wheels.
  - What has no wheel is carried as source. Pure Python is built here, the rest on the first board
    of a kind, with O(tools). What that one built goes into the archive of the others.
  - The archive's name says what went into it. One that is there already is not collected again.
  - What is locked is downloaded once, so that a release of another version of our package alone
    needs no internet.
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
  tools:
    description:
      - Locked requirements with hashes of what builds sources on the machine that installs it.
      - Without it, something that has no wheel and is not pure Python is an error.
    type: path
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
  runtime_lock:
    description: Locked requirements with hashes of the runtime, of which each must have a wheel.
    type: path
    default: ""
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
sources:
  description: Whether the archive has sources that the machine which installs it has to build.
  returned: success
  type: bool
built:
  description: Where to put an archive of the wheels that a machine built of them.
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

# What makes a wheel of finn-examples.
FINN_PROJECT = b"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "finn_examples"
version = "0"

[tool.setuptools]
packages.find.include = ["finn_examples*"]
package-data."*" = ["**"]
"""


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


def unpack(archive, folder):
    """Unpack a tar archive; nothing of it leaves the folder, where Python can see to that."""
    with tarfile.open(archive) as tar:
        # Python 3.11.2, as Debian 12 has it, knows no filters.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)


def digest(paths):
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def project(file):
    """Normalised name and version of a wheel or source archive."""
    if file.suffix == ".whl":
        name, version = file.name.split("-")[:2]
    else:
        name, version = re.sub(r"\.(tar\.gz|zip)$", "", file.name).rsplit("-", 1)
    return re.sub("[-_.]+", "-", name).lower(), version


def allow(requirements, wheel):
    """The requirements, with the hash of a wheel, unless they have it, for what they pin."""
    name = project(wheel)[0].replace("-", "[-_.]+")
    sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if sha in requirements:
        return requirements
    pinned = re.compile(rf"^{name}==[^\\\n]+", re.IGNORECASE | re.MULTILINE)
    return pinned.sub(rf"\g<0> --hash=sha256:{sha} ", requirements, count=1)


def sources_in(folder):
    """What a folder has as source only."""
    return sorted(file for file in folder.iterdir() if file.suffix != ".whl")


def newer(one, other):
    """Whether a file was written after another."""
    return one.stat().st_mtime > other.stat().st_mtime


class Collector:
    """Fills a folder with what goes into the archive."""

    def __init__(self, module, folder, built):
        self.module = module
        self.folder = folder
        self.built = built
        self.asked = module.params
        self.pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]

    def run(self, *command, **options):
        """Run a command; the module fails with what it printed last."""
        code, printed, errors = self.module.run_command(list(command), **options)
        if code:
            lines = [line for line in (printed + errors).splitlines() if line.strip()]
            self.module.fail_json(msg="{}: {}".format(command[0], "\n".join(lines[-5:])))
        return printed

    def locked(self, lock, *options):
        """Folder of what is locked and fits the machine, as wheels where that can be."""
        fits = [self.asked[name] for name in ("python", "machine", "glibc")]
        key = hashlib.sha256(json.dumps([Path(lock).read_text(), *fits]).encode()).hexdigest()
        kept = Path(self.asked["folder"], "locked", key[:10])
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                wheels, built = Path(scratch, "wheels"), Path(scratch, "built")
                self.download(lock, wheels, *options)
                for source in sources_in(wheels):
                    # What does not build here may do so where it belongs.
                    self.module.run_command(
                        [*self.pip, "wheel", "--wheel-dir", str(built), "--no-deps", str(source)]
                    )
                self.replace_sources(wheels, built.glob("*-none-any.whl"))
                os.replace(wheels, kept)
        return kept

    def download(self, lock, folder, *options):
        """Download what is locked and fits the machine."""
        tags = platforms(self.asked["machine"], self.asked["glibc"])
        self.run(
            *(*self.pip, "download", "--dest", str(folder), "--no-deps", *options),
            *("--require-hashes", "--requirement", lock),
            *("--python-version", self.asked["python"]),
            *(option for tag in tags for option in ("--platform", tag)),
        )

    def replace_sources(self, folder, wheels):
        """Put those wheels into a folder that it has the sources of."""
        built = {project(wheel): wheel for wheel in wheels}
        for source in sources_in(folder):
            if project(source) in built:
                shutil.copy(built[project(source)], folder)
                source.unlink()

    def wheels(self):
        """Collect the locked wheels and our own; requirements.txt names all with hashes."""
        wheels = self.folder / "wheels"
        shutil.copytree(self.locked(self.asked["lock"]), wheels)
        with tempfile.TemporaryDirectory() as scratch:
            for archive in self.built.glob("*.tar"):
                unpack(archive, scratch)
            self.replace_sources(wheels, Path(scratch).glob("*.whl"))
        requirements = Path(self.asked["lock"]).read_text().rstrip() + "\n"
        for wheel in sorted(wheels.iterdir()):
            requirements = allow(requirements, wheel)
        sources_left = [source.name for source in self.sources()]
        if sources_left and self.asked["tools"]:
            tools = self.folder / "tools"
            shutil.copytree(self.locked(self.asked["tools"], "--only-binary=:all:"), tools)
            shutil.copy(self.asked["tools"], tools / "requirements.txt")
        elif sources_left:
            missing = ", ".join(sources_left)
            self.module.fail_json(msg=f"no wheel for {self.asked['machine']}: {missing}")
        package = Path(self.asked["package"])
        with tempfile.TemporaryDirectory() as scratch:
            for path in sources(package):
                target = Path(scratch, path.relative_to(package))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            # With this environment's setuptools: another one would have to be downloaded.
            self.run(
                *(*self.pip, "wheel", "--wheel-dir", str(wheels), "--no-deps"),
                *("--no-build-isolation", scratch),
            )
        own = next(wheels.glob("distributed_pynq-*.whl"))
        requirements = allow(requirements + f"distributed-pynq=={project(own)[1]}\n", own)
        (self.folder / "requirements.txt").write_text(requirements)

    def sources(self):
        """What was to be had as source only."""
        return sources_in(self.folder / "wheels")

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
                unpack(path, target)

    def runtime(self):
        """Fill the folder runtime with what is installed as such: the source, or wheels."""
        source = self.asked["runtime"]
        if not source:
            return
        folder = self.folder / "runtime"
        if self.asked["runtime_lock"]:
            shutil.copytree(self.locked(self.asked["runtime_lock"], "--only-binary=:all:"), folder)
        folder.mkdir(exist_ok=True)
        target = folder / "source.tar.gz"
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
            linked = json.load(tar.extractfile(links[0])) if links else {}
        if links:
            self.carry_bitfiles(target, links[0], linked)
            # A wheel: boards need not have what builds one.
            self.run(
                *(*self.pip, "wheel", "--wheel-dir", str(folder), "--no-deps"),
                *("--no-build-isolation", str(target)),
            )
            target.unlink()

    def carry_bitfiles(self, source, link, linked):
        """Put bitfiles into a source in place of a link {platform: {"url": ..., "md5sum": ...}}.

        For LINK.link the setup of finn-examples unpacks to LINK.d/PLATFORM what it downloads. That
        done here, ours takes its place: it imports pynqutils, which came with image 3.0.
        """
        folder = Path(self.asked["bitfiles"] or "none given")
        archives = sorted(folder.glob("*.zip"))
        if not archives:
            wanted = ", ".join("{}.zip ({})".format(*pair) for pair in _urls(linked))
            self.module.fail_json(msg=f"bitfiles: {folder}: no archives, expected some of {wanted}")
        changed = source.with_suffix(".changed")
        root = link[: -len("finn_examples/bitfiles/bitfiles.zip.link")]
        with tarfile.open(source) as old, tarfile.open(changed, "w:gz") as new:
            member = tarfile.TarInfo(f"{root}pyproject.toml")
            member.size = len(FINN_PROJECT)
            new.addfile(member, io.BytesIO(FINN_PROJECT))
            for member in old:
                theirs = member.name in (f"{root}setup.py", f"{root}pyproject.toml")
                if not theirs and not member.name.endswith(".link"):
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
            "tools": {"type": "path"},
            "python": {"type": "str", "required": True},
            "machine": {"type": "str", "required": True},
            "glibc": {"type": "str", "required": True},
            "files": {"type": "dict", "default": {}},
            "parameters": {"type": "list", "elements": "path", "default": []},
            "runtime": {"type": "str", "default": ""},
            "runtime_version": {"type": "str", "default": "HEAD"},
            "runtime_lock": {"type": "path", "default": ""},
            "bitfiles": {"type": "path", "default": ""},
        },
        supports_check_mode=False,
    )
    asked = module.params
    paths = [Path(asked["lock"]), *map(Path, asked["files"].values())]
    paths += [Path(asked[lock]) for lock in ("tools", "runtime_lock") if asked[lock]]
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
    if asked["runtime_lock"]:
        runtime += "+" + digest([Path(asked["runtime_lock"])])
    parts = [asked["python"], asked["machine"], asked["glibc"], runtime]
    parts.append(digest([*paths, *sources(package)]))
    version = re.search(
        r'__version__ = "(.+?)"', (package / "distributed_pynq/__init__.py").read_text()
    ).group(1)
    name = f"{version}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]}"
    folder = Path(asked["folder"])
    kind = "{python}-{machine}-{glibc}".format(**asked)
    built = folder / "built" / kind
    whole, unbuilt = folder / f"{name}.tar", folder / f"{name}.source.tar"
    archive = next((path for path in (whole, unbuilt) if path.exists()), None)
    news = [tar for tar in built.glob("*.tar") if archive and newer(tar, archive)]
    changed = not archive or (archive == unbuilt and bool(news))
    if changed:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            collected = Path(scratch, name)
            collected.mkdir()
            collector = Collector(module, collected, built)
            collector.wheels()
            collector.files()
            collector.parameters()
            collector.runtime()
            part = Path(scratch, "archive")
            with tarfile.open(part, "w") as tar:
                tar.add(collected, name)
            unbuilt.unlink(missing_ok=True)
            archive = unbuilt if collector.sources() else whole
            os.replace(part, archive)
    pinned = re.search(r"^distributed==(\S+)", Path(asked["lock"]).read_text(), re.MULTILINE)
    module.exit_json(
        changed=changed,
        name=name,
        path=str(archive),
        sources=archive == unbuilt,
        built=str(built / f"{name}.tar"),
        runtime=runtime,
        distributed=pinned.group(1) if pinned else "",
    )


if __name__ == "__main__":
    main()
