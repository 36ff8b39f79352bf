"""Wait until somebody switches a new board on, and say live what comes up."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.distributed_pynq.boards.plugins.module_utils import host_keys

SCAN_S = 3
PAUSE_S = 1.0


class NoBoard(Exception):
    """Why a board cannot be enrolled now."""


class ActionModule(ActionBase):
    """Runs on the control machine and changes nothing.

    Takes `current` and `address`, the board's addresses before and after enrolment; `known_hosts`,
    the file with its host key, beside those of other boards; `hwaddresses`, of which its card must
    have one unless there is none; and `limit`, the seconds that it waits. Answers with a `state`:
    new (it is at its current address), enrolled (it is at its final one), or away (it was met
    before, and is off).
    """

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> Any:
        """The action."""
        result = super().run(tmp, task_vars)
        _, asked = self.validate_argument_spec(
            {
                "name": {"type": "str", "required": True},
                "current": {"type": "str", "required": True},
                "address": {"type": "str", "required": True},
                "known_hosts": {"type": "path", "required": True},
                "hwaddresses": {"type": "list", "elements": "str", "default": []},
                "limit": {"type": "int", "required": True},
            }
        )
        try:
            result.update(changed=False, state=self._await(**asked))
        except NoBoard as error:
            result.update(failed=True, msg=str(error))
        return result

    def _await(
        self,
        name: str,
        current: str,
        address: str,
        known_hosts: str,
        hwaddresses: list[str],
        limit: int,
    ) -> str:
        known = host_keys.recorded(known_hosts)
        if known and known & host_keys.scan(address, SCAN_S):
            _say(f"{name} is enrolled at {address} already")
            return "enrolled"
        others = {
            key: path.name
            for path in Path(known_hosts).parent.iterdir()
            if path != Path(known_hosts)
            for key in host_keys.recorded(path, host_keys.OWN)
        }
        # With a key of its card beside its own it was interrupted before it showed its own.
        if known and known == host_keys.recorded(known_hosts, host_keys.OWN):
            found = host_keys.scan(current, SCAN_S)
            if known & found:
                return "new"
            if found and not _refusal(found, others, _hwaddress(current), hwaddresses):
                # The next board that is new would be given it.
                raise NoBoard(
                    f"{name} was met before and does not answer, but another card does at "
                    f"{current}. If {name} has it now, forget the one of before: rm {known_hosts}, "
                    "then make enrol; otherwise switch it off until it is asked for"
                )
            _say(f"{name} was met before and does not answer now: left out")
            return "away"
        _say(f"power on {name}, waiting for {current} ...")
        said, deadline = "", time.monotonic() + limit
        while time.monotonic() < deadline:
            found = host_keys.scan(current, SCAN_S)
            if found:
                refusal = _refusal(found, others, _hwaddress(current), hwaddresses)
                if not refusal:
                    return "new"
                if refusal != said:
                    _say(f"the card at {current} {refusal}: left alone; power on {name} instead")
                said = refusal
            else:
                said = ""
                _insist_on_link(current)
            time.sleep(PAUSE_S)
        raise NoBoard(f"{name} did not come up at {current} within {limit} s")


def _refusal(
    found: set[str], others: dict[str, str], hwaddress: str, hwaddresses: list[str]
) -> str:
    """Why a card with these host keys and this MAC address is the wrong one."""
    for key in found & set(others):
        return f"is {others[key]}"
    if hwaddresses and hwaddress and hwaddress not in map(str.lower, hwaddresses):
        return f"has the MAC address {hwaddress}, not {' or '.join(hwaddresses)}"
    return ""


def _hwaddress(address: str) -> str:
    """MAC address that has just answered for an address of a network of this machine."""
    shown = subprocess.run(
        ["ip", "neigh", "show", "to", address], check=False, capture_output=True, text=True
    ).stdout
    match = re.search(r"lladdr (\S+)", shown)
    return match[1] if match else ""


def _insist_on_link(address: str) -> None:
    """Fail where this machine has no address in the network of an address that does not answer."""
    route = subprocess.run(
        ["ip", "-json", "route", "get", address], check=False, capture_output=True, text=True
    )
    if route.returncode or "gateway" in json.loads(route.stdout)[0]:
        raise NoBoard(
            f"this machine has no address in the network of {address}, with which cards come; "
            "give it one, as with: ip address add 192.168.2.1/24 dev eth0"
        )


def _say(line: str) -> None:
    Display().display(line, color=constants.COLOR_HIGHLIGHT)
