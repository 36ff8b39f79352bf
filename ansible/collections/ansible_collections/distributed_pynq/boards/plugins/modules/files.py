"""Write several text files in one call. Runs on boards: Python 3.6."""

import errno
import os
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: files
short_description: Write several text files in one call
description:
  - Writes each file whose content, mode or owner differs, atomically where the file system can.
  - Parent folders are made, owned by root with mode 0755.
options:
  files:
    description: The files, each as O(files[].path) and O(files[].content).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      content:
        description: The whole content; nothing at all means that the file must not be there.
        type: str
      mode:
        description: Permissions.
        type: str
        default: "0644"
  secrets:
    description:
      - The contents of files that their owner alone may read, by path.
      - They are kept out of logs, results and diffs.
    type: dict
    default: {}
author:
  - Distributed PYNQ
"""

EXAMPLES = r"""
- name: Set the environment of services
  distributed_pynq.boards.files:
    files:
      - path: /etc/distributed-pynq/board.env
        content: |
          BOARD=Pynq-Z1
    secrets: "{{ {'/etc/distributed-pynq/tls/key.pem': key} }}"
"""

RETURN = r"""
paths:
  description: The files that changed, or would in check mode.
  returned: always
  type: list
  elements: str
"""

SPEC = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str"},
    "mode": {"type": "str", "default": "0644"},
}


def read(path):
    """Content and mode of a file, (None, None) where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None, None
        raise


def write(path, content, mode):
    """Replace a file, by renaming a new one over it unless something is mounted there."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        os.makedirs(folder, 0o755)
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(temporary, path)
    except OSError as error:
        os.remove(temporary)
        if error.errno != errno.EBUSY:
            raise
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)


def main():
    """The module."""
    module = AnsibleModule(
        {
            "files": {"type": "list", "elements": "dict", "default": [], "options": SPEC},
            # Apart from the others: what is logged is hidden by whole arguments alone.
            "secrets": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    files, secrets = module.params["files"], module.params["secrets"]
    files += [{"path": path, "content": secrets[path], "mode": "0600"} for path in secrets]
    paths, diffs = [], []
    for file in files:
        path, wanted = file["path"], file["content"]
        try:
            mode = int(file["mode"], 8)
        except ValueError:
            module.fail_json(msg="{}: mode {!r} is not octal".format(path, file["mode"]))
        content = None if wanted is None else wanted.encode("utf-8")
        try:
            found, found_mode = read(path)
            if found == content and (content is None or found_mode == mode):
                continue
            paths.append(path)
            if not module.check_mode:
                if content is None:
                    os.remove(path)
                else:
                    write(path, content, mode)
        except OSError as error:
            module.fail_json(msg=f"{path}: {error.strerror}", paths=paths)
        hidden = "(secret)\n" if path in secrets else None
        diffs.append(
            {
                "before_header": path,
                "after_header": "{} (mode {})".format(path, file["mode"]),
                "before": "" if found is None else hidden or found.decode("utf-8", "replace"),
                "after": "" if content is None else hidden or wanted,
            }
        )
    module.exit_json(changed=bool(paths), paths=paths, diff=diffs)


if __name__ == "__main__":
    main()
