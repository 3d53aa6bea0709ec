"""Sessions of those who install hvext, and of those who change it."""

from __future__ import annotations

from tests.pages.sessions import Session

INSTALL = "docs/install.md"

INSTALLING = (
    Session(
        name="with pip",
        needs={"man": "man-db"},
        blocks=((INSTALL, "python3 -m venv"),),
        ground="rm /usr/local/bin/hvext\n",
        stands_for={"/path/to/hvext[": "'\"$ROOT\"'["},
        after="hvext --version\nman -M /opt/hvext/share/man hvext-plug | grep -c -- --qmp\n"
        "hvext completion bash | grep -c complete\n",
        timeout_s=600,
    ),
    Session(
        name="Debian packages",
        needs={"dpkg-buildpackage": "dpkg-dev", "man": "man-db"},
        blocks=((INSTALL, "scripts/setup --deb"),),
        ground='rm /usr/local/bin/hvext\ncd "$ROOT"\n',
        stands_for={"apt install ": "apt install --yes "},
        after="test \"$(command -v hvext)\" = /usr/bin/hvext\nhvext --version\nhvext explain --offline - <<'ANSWER'\n"
        "/dev/rbd0\nkvm:rbd:vms/v1\nANSWER\nman hvext-plug | grep -c -- --qmp\n",
        says=("userspace: rbd:vms/v1",),
        timeout_s=1200,
    ),
    Session(
        name="two commands",
        blocks=(("README.md", "scripts/quickstart"), ("README.md", "STEP ")),
        ground='cd "$ROOT"\n',
        # The tests of the second are these.
        stands_for={"scripts/test  ": "scripts/test --collect-only -q 2>&1 | tail -n 1  "},
        says=("tests collected", "all well"),
        # The demo's volume is none of the host's.
        after="not ls /var/lib/hvext/history\nhvext report --html /root/page/report.html\n"
        "not grep sample/demo /root/page/report.html\n",
        timeout_s=1200,
    ),
    Session(
        name="changing hvext",
        blocks=(("CONTRIBUTING.md", "scripts/setup --tests"),),
        ground='cd "$ROOT"\n',
        # What is checked, and the tests themselves, are what runs this: .ci/run.
        stands_for={"scripts/check ": "scripts/check --help ", "scripts/test": "scripts/test --collect-only -q"},
        says=("tests collected",),
        timeout_s=1200,
    ),
    Session(
        name="the guest's writer",
        needs={"gcc": "gcc"},
        blocks=(("vm-images/README.md", "writer DEVICE"),),
        within={
            "writer DEVICE": """\
gcc -pthread -o writer "$ROOT/vm-images/writer.c"
tr -s ' \\n' ' ' >shown <<'USAGE'
BLOCKUSAGE
./writer --help | tr -s ' \\n' ' ' >said
while read -r -d ' ' word; do grep -qF -- "$word" said || { echo "no $word"; exit 1; }; done <shown
"""
        },
    ),
)
