"""Lock the requirements of each profile: of its boards, and of the image of its scheduler and jobs.

Reads ansible/group_vars/all/profiles.yml, writes board-PROFILE.lock and job-PROFILE.lock.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
APP = HERE.parent
PROFILES = APP.parent / "ansible" / "group_vars" / "all" / "profiles.yml"


def lock(target: Path, profile: dict[str, str], *sources: str) -> None:
    """Resolve sources and the profile's version of distributed for its version of Python."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as wanted:
        wanted.write(f"distributed=={profile['distributed']}\n")
        wanted.flush()
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet"),
                *("--upgrade", "--generate-hashes", "--python-version", profile["python"]),
                *("--no-header", "--no-annotate", "--no-emit-index-url"),
                *(*sources, wanted.name, "--output-file", str(target)),
            ],
            cwd=APP,
            check=True,
            stdout=subprocess.DEVNULL,
        )


def main() -> None:
    """Lock all profiles."""
    for name, profile in yaml.safe_load(PROFILES.read_text())["profiles"].items():
        lock(HERE / f"board-{name}.lock", profile)
        lock(HERE / f"job-{name}.lock", profile, "pyproject.toml", "--extra", "host")


if __name__ == "__main__":
    main()
