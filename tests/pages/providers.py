"""Sessions of those who write providers: the kit, the skeleton, and the provider of 40 lines."""

from __future__ import annotations

from tests.pages.sessions import Session

WRITE, SANITY = "docs/write-a-provider.md", "docs/sanity.md"

#: A provider ``mine`` on Ganeti's path that takes the parameters which the page gives it.
_MINE = """\
mkdir -p /srv/ganeti/extstorage /srv/mine
cd /srv/ganeti/extstorage
hvext new-provider mine >/dev/null
printf 'pool a pool\\npassword a password\\n' >>mine/parameters.list
"""

PROVIDERS = (
    Session(
        name="a new provider",
        blocks=((WRITE, "cd /srv/ganeti/extstorage\nhvext"),),
        ground="mkdir -p /srv/ganeti/extstorage /srv/mine\n",
        says=(r"mine, level contract: \d+ passed, 0 failed",),
    ),
    Session(
        name="a provider of 40 lines",
        blocks=(
            (WRITE, "#!/bin/sh\n# The provider mini"),
            (WRITE, "chmod +x provider"),
            (WRITE, "FAIL  directory"),
            (WRITE, "ok    attach  "),
            (WRITE, "mini, level contract"),
        ),
        ground="mkdir -p /srv/ganeti/extstorage/mini\ncd /srv/ganeti/extstorage/mini\n"
        "echo 'dir folder the volumes are in (default: /srv/mini)' >parameters.list\n",
        within={"#!/bin/sh": "cat >provider <<'PROVIDER'\nBLOCKPROVIDER\n"},
        before={
            "FAIL  directory": "mkdir ../kept; mv grow detach setinfo remove verify ../kept\n"
            "hvext sanity mini --level contract || [ $? = 1 ]\nmv ../kept/* .\n",
            "ok    attach  ": "cp provider ../good\n"
            "sed -i 's/need && dev=$(device) && /need \\&\\& dev= \\&\\& /' provider\n"
            "hvext sanity mini --level contract || [ $? = 1 ]\ncp ../good provider\n",
            "mini, level contract": "hvext sanity mini --level contract\n",
        },
    ),
    Session(
        name="the kit",
        blocks=((SANITY, "hvext sanity mine -p pool=test "), (SANITY, "FAIL  grow-path")),
        ground=_MINE + "head -c 9 /dev/urandom | base64 >/root/secret\n",
        before={
            "FAIL  grow-path": "sed -i 's/losetup --set-capacity/true/' mine/grow\n"
            "hvext sanity mine --level contract -p dir=/srv/mine || [ $? = 1 ]\n"
        },
        says=(r"mine, level stress: \d+ passed, 0 failed", "name-signs.*asked for"),
        after="grep -q '<testsuite' sanity.xml\n",
        timeout_s=1500,
    ),
    Session(
        name="a provider that adopts devices",
        blocks=((SANITY, "hvext sanity blockdev"),),
        ground="""\
mkdir /srv/vg
for each in a b c; do
    truncate -s 100M /srv/vg/$each.raw
    ln -s "$(losetup --find --show /srv/vg/$each.raw)" /srv/vg/$each
done
""",
        # The machine shares its devices with the one that it is run on.
        stands_for={"/dev/vg/": "/srv/vg/"},
        says=(r"blockdev, level \w+: \d+ passed, 0 failed",),
        timeout_s=600,
    ),
    Session(
        name="the kit in a suite",
        blocks=((SANITY, "pytest --extstorage-provider"),),
        ground=_MINE + 'mkdir /srv/test\nPATH="$(dirname "$PYTHON"):$PATH"\n',
        says=(r"\d+ passed",),
        timeout_s=600,
    ),
    Session(
        name="the sample by hand",
        blocks=(
            ("hvext/providers/sample/README.md", "cd hvext/providers/sample"),
            ("hvext/providers/sample/README.md", "/dev/loop0\nkvm:"),
            ("hvext/providers/sample/README.md", "./detach"),
        ),
        ground='cd "$ROOT"\n',
        after="not test -e /tmp/volumes/try.ext.disk0\n",
    ),
)
