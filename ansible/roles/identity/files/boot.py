"""Makes a copied card the board that it is to be, as the role identity would.

bootpy runs it as root at every boot, until it has done its work and is gone. Python 3.6.
"""

import os
import pwd
import re
import subprocess
import uuid

SETTINGS = {}

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"


def read(path):
    """Content of a text file; nothing where there is none."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write(path, text, mode=0o644):
    """Replace a file by one that is on the card for good."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    os.replace(path + ".new", path)


def take_keys(private, public, note):
    """Host keys, one of which the control machine knows already, and a machine-id."""
    if read(note) == public:
        return
    folder = os.path.dirname(HOST_KEY)
    for name in os.listdir(folder):
        if re.match(r"ssh_host_.+_key(\.pub)?$", name):
            os.remove(os.path.join(folder, name))
    write(HOST_KEY, private, 0o600)
    write(HOST_KEY + ".pub", public)
    subprocess.check_call(["ssh-keygen", "-A"])
    write("/etc/machine-id", uuid.uuid4().hex + "\n", 0o444)
    # Later in this boot, if the SSH server is still to start.
    subprocess.call(["systemctl", "--no-block", "try-reload-or-restart", "ssh"])
    write(note, public)


def let_in(user, key):
    """A public key that opens the account of a user."""
    account = pwd.getpwnam(user)
    folder = os.path.join(account.pw_dir, ".ssh")
    path = os.path.join(folder, "authorized_keys")
    lines = read(path)
    if key not in lines.splitlines():
        write(path, lines + key + "\n", 0o600)
    os.chmod(folder, 0o700)
    for each in (folder, path):
        os.chown(each, account.pw_uid, account.pw_gid)


def take_name(name):
    """The hostname."""
    if read("/etc/hostname") != name + "\n":
        write("/etc/hostname", name + "\n")
        subprocess.check_call(["hostname", name])
    hosts = re.sub(r"^127\.0\.1\.1\s.*\n", "", read("/etc/hosts"), flags=re.M)
    hosts += f"127.0.1.1\t{name}\n"
    if hosts != read("/etc/hosts"):
        write("/etc/hosts", hosts)


def take_address(interface, settings):
    """The settings of the network interface; there is nobody to go back to the old ones for."""
    path = "/etc/network/interfaces.d/" + interface
    if read(path) == settings:
        return
    subprocess.call(["ifdown", "--force", interface + ":1", interface])
    # ifupdown does not know addresses that others gave, and leaves them.
    subprocess.check_call(["ip", "addr", "flush", "dev", interface])
    write(path, settings)
    subprocess.check_call(["ifup", "-a"])


def main():
    """All of it, once: what the board becomes later is not undone at its next boot."""
    take_keys(SETTINGS["host_key"], SETTINGS["host_key_public"], SETTINGS["note"])
    let_in(SETTINGS["user"], SETTINGS["public_key"])
    take_name(SETTINGS["name"])
    take_address(SETTINGS["interface"], SETTINGS["interface_settings"])
    # After a power cut all of this is done again: so not before the rest is safe on the card.
    os.sync()
    os.remove(__file__)
    os.sync()


if __name__ == "__main__":
    main()
