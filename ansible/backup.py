"""Keep what a control machine has of a deployment, for another one to take over.

usage: backup.py save INVENTORY | restore ARCHIVE

The archive holds the inventory, the group_vars and host_vars beside it, the runtimes' sources that
they name, and the deployment's secrets: the SSH key that boards let in, the boards' host keys, the
certificate authority and the certificates. What deploying makes or fetches again is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECRETS = ("ssh", "ca", "certificates")
# Looked for in the text: what Ansible knows may be locked with a password that nobody gave.
COMMENT = re.compile(r"(^|\s)[#;].*", re.MULTILINE)
SOURCE = re.compile(
    r"""\b(bnn_source|finn_source|finn_bitfiles)[ \t]*[=:][ \t]*("[^"]+"|'[^']+'|\S+)"""
)


def sources(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """What files and folders of settings say of sources, as ("finn_bitfiles", "bitfiles")."""
    for path in paths:
        for file in [path] if path.is_file() else filter(Path.is_file, sorted(path.rglob("*"))):
            for name, value in SOURCE.findall(COMMENT.sub("", file.read_text(errors="replace"))):
                yield name, value.strip("'\"")


def save(inventory: Path) -> None:
    """Write an archive that only its owner can read into the current folder.

    Sources elsewhere than below the inventory's folder are named and left out.

    Raises SystemExit where the inventory has not been deployed from this checkout.
    """
    deployment = ROOT / ".deploy" / inventory.stem
    if not (deployment / "ca" / "key.pem").is_file():
        sys.exit(f"{inventory.name} has not been deployed from here: {deployment} has no keys")
    beside = [inventory, inventory.with_name("group_vars"), inventory.with_name("host_vars")]
    kept = {path.name: path for path in beside if path.exists()}
    kept |= {str((deployment / name).relative_to(ROOT)): deployment / name for name in SECRETS}
    missing = []
    for name, value in dict.fromkeys(sources(beside)):
        place = Path(os.path.normpath(value))
        path = inventory.parent / place
        if not value or "://" in value:
            continue
        if place.is_absolute() or place.parts[:1] in ((), ("..",)) or not path.exists():
            missing.append(f"{name}={value}")
        else:
            kept[str(place)] = path
    archive = Path(f"backup-{inventory.stem}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    descriptor = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            tar.dereference = True
            for name, path in kept.items():
                tar.add(path, name)
    except BaseException:
        archive.unlink()
        raise
    print(f"{archive} has {', '.join(kept)}")
    if missing:
        print(f"It has not {', '.join(missing)}: the other machine needs that too.")
    print("It holds private keys: whoever has it has the cluster. make restore FROM=… unpacks it.")


def restore(archive: Path) -> None:
    """Unpack an archive into this checkout; what is here stays as it is.

    Raises SystemExit where a file is here already with another content, or the archive is none.
    """
    os.umask(0o077)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            files = [member for member in tar if member.isfile()]
            places = [Path(member.name).parts for member in files]
            [deployment] = {parts[1] for parts in places if parts[0] == ".deploy"}
            for member in files:
                there, content = ROOT / member.name, tar.extractfile(member)
                if there.exists() and content and there.read_bytes() != content.read():
                    sys.exit(f"{member.name} is here already and differs: nothing was restored")
            # Python 3.11.2, as Debian 12 has it, knows no filters.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(ROOT)
    except OSError as error:
        sys.exit(f"{error.filename or archive}: {error.strerror}")
    except (tarfile.TarError, ValueError):
        sys.exit(f"{archive}: no backup of a deployment")
    print(f"{deployment} is restored: make deploy INVENTORY={deployment}.ini goes on from here")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("save").add_argument("path", type=Path, metavar="INVENTORY")
    commands.add_parser("restore").add_argument("path", type=Path, metavar="ARCHIVE")
    arguments = parser.parse_args()
    {"save": save, "restore": restore}[arguments.command](arguments.path)


if __name__ == "__main__":
    main()
