"""Every role keeps the contract of a role."""

import pytest
import yaml
from rig import ROOT

ROLES = sorted(path for path in (ROOT / "ansible/roles").iterdir() if path.is_dir())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_arguments_are_the_defaults(role):
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    assert set(specs["main"]["options"]) == set(defaults)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_arguments_bear_the_role_s_name_and_are_described(role):
    options = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    for name, option in options["main"]["options"].items():
        assert name.startswith(f"{role.name}_")
        assert option["description"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_readme_explains_every_argument(role):
    readme = (role / "README.md").read_text()
    names = yaml.safe_load((role / "defaults/main.yml").read_text())
    assert [name for name in names if f"`{name}`" not in readme] == []
