"""Sessions without a guest, a server or a measurement: they belong to every run of the tests."""

from __future__ import annotations

from tests.pages.sessions import Session

CLI, INSTALL = "docs/cli.md", "docs/install.md"

QUICK = (
    Session(
        name="explain, capabilities",
        needs={"qemu-system-x86_64": "qemu-system-x86"},
        blocks=((CLI, "printf '/dev/rbd0"), (CLI, "hvext capabilities ")),
        ground="""\
truncate -s 1M disk
mkdir my-provider
printf '#!/bin/sh\\necho %s\\necho kvm:rbd:vms/v1\\n' "$(losetup --find --show disk)" >my-provider/attach
chmod +x my-provider/attach
UUID=7b0f4a39-6f0c-4d3c-9a51-1f4f0e2c8d11
mkdir -p /opt/qemu/bin
ln -s /usr/bin/qemu-system-x86_64 /opt/qemu/bin/
empty_qemu vm1 /run/vm1.qmp
""",
        # Whether it fits depends on the drivers that are installed here.
        answers=True,
        says=("userspace: rbd:vms/v1", "scsi-hd", r"driver +nbd +yes", r"driver +rbd +\?"),
    ),
    Session(
        name="a password file",
        blocks=(("docs/howto-secrets.md", "install -d"),),
        stands_for={"/dev/stdin /etc": "/dev/stdin </root/page/script /etc"},
        after='test "$(stat -c %a /etc/hvext /etc/hvext/san.password | paste -s)" = "700\t600"\n',
    ),
    Session(
        name="completion",
        blocks=((INSTALL, "mkdir -p ~/.local/share/bash-completion"),),
        after="grep -q hvext /usr/local/share/zsh/site-functions/_hvext\n"
        "grep -q hvext ~/.local/share/bash-completion/completions/hvext\n"
        "grep -q hvext ~/.config/fish/completions/hvext.fish\n",
    ),
    Session(
        name="a service that may write more",
        needs={"systemd-analyze": "systemd"},
        blocks=((INSTALL, "[Service]"),),
        within={
            "[Service]": """\
ln -sf /usr/local/bin/hvext /usr/bin/hvext
mkdir -p /etc/systemd/system/hvext-watch.service.d
cp $ROOT/packaging/systemd/hvext-watch.service /etc/systemd/system/
cat >/etc/systemd/system/hvext-watch.service.d/override.conf <<'DROP'
BLOCKDROP
systemd-analyze verify --man=no hvext-watch.service 2>&1 | tee said
not grep hvext-watch said
"""
        },
    ),
)
