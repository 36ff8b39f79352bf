"""Find the address that a board answers at. Runs on the control machine."""

import concurrent.futures

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.distributed_pynq.boards.plugins.module_utils import host_keys

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
    known = host_keys.recorded(path)
    candidates = list(dict.fromkeys([address, current] if known else [current]))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        limits = [module.params["timeout"]] * len(candidates)
        found = dict(zip(candidates, pool.map(host_keys.scan, candidates, limits)))
    for host in candidates:
        if found[host] and (not known or known & found[host]):
            module.exit_json(changed=False, host=host)
    strangers = [host for host in candidates if found[host]]
    if strangers:
        module.fail_json(
            msg="{} answers, but not with the host key recorded for {}. If its card was written "
            "anew, forget the old key with: rm {}".format(" and ".join(strangers), name, path)
        )
    module.fail_json(msg="no SSH server answers at {}".format(" or ".join(candidates)))


if __name__ == "__main__":
    main()
