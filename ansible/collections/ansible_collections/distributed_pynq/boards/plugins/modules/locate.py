"""Find the address that a board answers at. Runs on the control machine."""

import concurrent.futures
import os

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: locate
short_description: Find the address that a board answers at
description:
  - Runs on the control machine and changes nothing.
  - A board that has been met before is told by its host key, at its final or its current address.
    Before that nothing tells it apart, and only its current address counts.
options:
  name:
    description: The board, by which its host key was recorded.
    type: str
    required: true
  current:
    description: Address before the first deployment.
    type: str
    required: true
  address:
    description: Final address.
    type: str
    required: true
  known_hosts:
    description: File with the host keys of the boards met so far.
    type: path
    required: true
  timeout:
    description: Seconds that an address has to answer.
    type: int
    default: 5
author:
  - Distributed PYNQ
"""

EXAMPLES = r"""
- name: Find the board
  distributed_pynq.boards.locate:
    name: z1-01
    current: 192.168.2.99
    address: 192.168.2.11
    known_hosts: known_hosts
  delegate_to: localhost
"""

RETURN = r"""
host:
  description: The address to connect to.
  returned: success
  type: str
"""

ALGORITHM = "ssh-ed25519"


def main():
    """The module."""
    module = AnsibleModule(
        {
            "name": {"type": "str", "required": True},
            "current": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "known_hosts": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    name, current, address = (module.params[key] for key in ("name", "current", "address"))
    path = module.params["known_hosts"]

    def keys(lines):
        fields = (line.split() for line in lines.splitlines() if not line.startswith("#"))
        return {field[2] for field in fields if len(field) >= 3 and field[1] == ALGORITHM}

    def scan(host):
        limit = str(module.params["timeout"])
        return keys(module.run_command(["ssh-keyscan", "-T", limit, "-t", "ed25519", host])[1])

    known = set()
    if os.path.exists(path):
        known = keys(module.run_command(["ssh-keygen", "-F", name, "-f", path])[1])
    candidates = list(dict.fromkeys([address, current] if known else [current]))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = dict(zip(candidates, pool.map(scan, candidates)))
    for host in candidates:
        if found[host] and (not known or known & found[host]):
            module.exit_json(changed=False, host=host)
    strangers = [host for host in candidates if found[host]]
    if strangers:
        module.fail_json(
            msg="{} answers, but not with the host key recorded for {}. If its card was written "
            "anew, forget the old key with: ssh-keygen -f {} -R {}".format(
                " and ".join(strangers), name, path, name
            )
        )
    module.fail_json(msg="no SSH server answers at {}".format(" or ".join(candidates)))


if __name__ == "__main__":
    main()
