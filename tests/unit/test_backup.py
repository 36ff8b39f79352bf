"""What another control machine gets of a deployment, also with an older Python."""

import importlib.util
import tarfile
from pathlib import Path

import pytest

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"
COLLECTION = ANSIBLE / "collections/ansible_collections/distributed_pynq/boards"
INVENTORY = """\
[boards]
z1-01 address=192.168.2.11 finn_source="sources/finn examples.tar.gz"  # finn_source=gone.tar.gz
[all:vars]
# bnn_source=BNN-PYNQ.tar.gz  local archive
bnn_source=
finn_bitfiles=bitfiles
"""
SETTINGS = "bnn_source: /srv/bnn-pynq.tar.gz\nfinn_source: https://example.org/finn.tar.gz\n"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["filters", "no filters"])
def python(request, monkeypatch):
    """This Python's tarfile, and that of Python 3.11.2, which Debian 12 has."""
    if request.param == "no filters":
        extractall = tarfile.TarFile.extractall

        def old(self, path=".", members=None, *, numeric_owner=False):
            return extractall(self, path, members, numeric_owner=numeric_owner)

        monkeypatch.setattr(tarfile.TarFile, "extractall", old)
        monkeypatch.delattr(tarfile, "data_filter", raising=False)


@pytest.fixture
def deployed(tmp_path):
    """A checkout with a deployment and an inventory that names sources of its own."""
    contents = {
        "inventory.ini": INVENTORY,
        "group_vars/boards.yml": SETTINGS,
        "sources/finn examples.tar.gz": "finn",
        "bitfiles/Pynq-Z1.zip": "bits",
        ".deploy/inventory/ca/key.pem": "key",
        ".deploy/inventory/ssh/host_keys/z1-01": "key",
        ".deploy/inventory/certificates/z1-01/key.pem": "key",
    }
    for path, text in contents.items():
        (tmp_path / "here" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / path).write_text(text)
    (tmp_path / "here/.deploy/inventory/releases").mkdir()
    (tmp_path / "there").mkdir()
    return contents


def test_all_that_the_inventory_names_goes_along(python, deployed, tmp_path, monkeypatch, capsys):
    backup = load(ANSIBLE / "backup.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backup, "ROOT", tmp_path / "here")
    backup.save(tmp_path / "here/inventory.ini")
    said = capsys.readouterr().out
    assert "It has not bnn_source=/srv/bnn-pynq.tar.gz: the other machine needs that too" in said
    assert said.count("_source") == 1
    [archive] = tmp_path.glob("backup-*.tar.gz")
    there = tmp_path / "there"
    monkeypatch.setattr(backup, "ROOT", there)
    backup.restore(archive)
    files = (path for path in there.rglob("*") if path.is_file())
    assert {str(path.relative_to(there)): path.read_text() for path in files} == deployed


def test_a_release_takes_what_is_in_archives(python, tmp_path):
    pytest.importorskip("ansible")
    (tmp_path / "params").mkdir()
    (tmp_path / "params/0-0-weights.bin").write_text("weights")
    with tarfile.open(tmp_path / "params.tar", "w") as tar:
        tar.add(tmp_path / "params", "digits")
    load(COLLECTION / "plugins/modules/release.py").unpack(
        tmp_path / "params.tar", tmp_path / "new"
    )
    assert (tmp_path / "new/digits/0-0-weights.bin").read_text() == "weights"
