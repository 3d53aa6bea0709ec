"""Sessions that measure: benchmarks, what hvext itself costs, and outages that are played through."""

from __future__ import annotations

from tests.pages.sessions import Session

TUNING, SCALE = "docs/howto-tuning.md", "docs/scale.md"
#: Enough to see that each command works; what is measured in so short a time says nothing.
_FEW = "--job /root/page/few.fio --rounds 2 --runtime 0.2 --span 16M"
_SHORT = {
    "pip install 'hvext[bench]' ": '"$PYTHON" -m pip install --quiet --editable "$ROOT[bench]" ',
    "PROVIDER VOLUME": "sample v1",
    "--quick": _FEW,
    "--level both": f"--level both {_FEW}",
    "--level guest": f"--level guest {_FEW}",
    "before.json after.json": "r.json r.json",
}
#: The guest's image is looked for below the folder that one is in.
_GROUND = """\
printf '[reads]\\nrw=randread\\nbs=4k\\n' >few.fio
cd "$ROOT"
"""

MEASURING = (
    Session(
        name="benchmarks",
        blocks=(
            ("docs/bench.md", "pip install"),
            ("docs/bench.md", "hvext tune"),
            ("docs/cli.md", "hvext bench sample v1 --quick"),
        ),
        ground=_GROUND + "hvext create sample v1 --size 256\n",
        stands_for=_SHORT,
        says=("Recommendation: ",),
        after="grep -q '<svg' r.html\n",
        timeout_s=1500,
    ),
    Session(
        name="tuning",
        blocks=(
            (TUNING, "hvext create sample probe"),
            (TUNING, "hvext tune sample probe"),
            (TUNING, "hvext bench sample probe --level both"),
        ),
        ground=_GROUND,
        stands_for={name: here for name, here in _SHORT.items() if name.startswith("--")},
        says=("Recommendation: ", "sample/probe: removed"),
        after="grep -q '<svg' before.html\n",
        timeout_s=1500,
    ),
    Session(
        name="what hvext costs",
        blocks=(("docs/control-plane.md", "scripts/bench-control"),),
        ground='cd "$ROOT"\n',
        # The first of them takes a quarter of an hour.
        stands_for={"scripts/bench-control  ": "scripts/bench-control --quick --only single --only startup "},
        after="test -s bench-control.json\n",
        timeout_s=1500,
    ),
    Session(
        name="outages",
        blocks=tuple(
            (SCALE, f"$ scripts/simulate-outage{words}\n")
            for words in ("", " --no-naive --jitter 0.5 --capacity 5000", " --silent --no-naive --jitter 0.5")
        ),
        ground='cd "$ROOT"\n',
        exact=True,
        timeout_s=600,
    ),
)
