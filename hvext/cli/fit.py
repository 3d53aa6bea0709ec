"""``hvext explain --qmp``: whether a disk would fit into a guest that runs, and what a plug would do; nothing is."""

from __future__ import annotations

import argparse

from hvext.cli.arguments import options, parameters, secret_files
from hvext.cli.explain import described
from hvext.cli.output import print_json, print_table, print_warnings
from hvext.core.access import Access
from hvext.core.answer import Attachment
from hvext.core.disk import Disk, parse_uuid
from hvext.core.fit import Finding, Fit
from hvext.core.plan import DiskPlan
from hvext.core.volume import Volume, derived_uuid
from hvext.errors import InputError
from hvext.host import interrupts
from hvext.host.provider import DEFAULT_SEARCH_PATH, ProviderHost
from hvext.host.qmp import CONNECT_TIMEOUT_S, connect
from hvext.operations.fit.examination import Examined, examine

_WORDS = {Fit.OK: "ok", Fit.PROBLEM: "PROBLEM", Fit.UNKNOWN: "unknown"}


def fit(arguments: argparse.Namespace, attachment: Attachment | None) -> int:
    """Print what is found about the disk and the guest; 0 when it fits."""
    wished = _disk(arguments)
    path = arguments.search_path
    folders = tuple(folder for folder in path.split(":") if folder) if path else DEFAULT_SEARCH_PATH

    async def work() -> Examined:
        limit_s = arguments.qmp_timeout
        async with connect(
            arguments.qmp, timeout_s=limit_s, connect_timeout_s=min(limit_s, CONNECT_TIMEOUT_S)
        ) as monitor:
            host = ProviderHost(search_path=folders)
            return await examine(monitor, host, wished, attachment, name=arguments.vm, offline=arguments.offline)

    examined = interrupts.run(work())
    if arguments.json:
        print_json(_to_json(examined, attachment))
    else:
        print_warnings(attachment.warnings if attachment else ())
        _print_words(examined)
    return 0 if examined.fitting.fits else 1


def _disk(arguments: argparse.Namespace) -> Disk:
    """Return the disk that ``hvext plug`` would be given; raises InputError."""
    provider, slash, name = (arguments.volume or "").partition("/")
    if not slash:
        raise InputError(
            "--qmp asks whether a disk fits, and which disk that is was not said"
            if not arguments.volume
            else f"--volume takes PROVIDER/VOLUME; got {arguments.volume!r}",
            hint="name it as hvext plug would be: --volume PROVIDER/VOLUME, with the same -p and -o",
        )
    if arguments.hypervisor.lower() != "kvm" or arguments.qemu is not None:
        raise InputError("--hypervisor and --qemu do not go with --qmp: the QEMU that runs is asked")
    values = parameters(arguments)
    uuid = parse_uuid(arguments.disk_uuid) if arguments.disk_uuid else derived_uuid(provider, name, values)
    return Disk(
        provider=provider,
        volume=Volume(name=name, uuid=uuid, parameters=values),
        access=Access(arguments.access),
        secret_files=secret_files(arguments),
        options=options(arguments),
    )


def _to_json(examined: Examined, attachment: Attachment | None) -> dict[str, object]:
    chosen = examined.chosen
    return {
        "attachment": described(attachment) if attachment else None,
        "chosen": {**chosen.to_json(), "reason": examined.reason} if chosen else None,
        **examined.fitting.to_json(),
        **_parts(examined.plan),
        "steps": [{"step": step.name, "inverse": step.inverse or None} for step in examined.steps],
    }


def _parts(plan: DiskPlan | None) -> dict[str, object]:
    """Return what QEMU would be given; without a plan, nothing."""
    if plan is None:
        return {"objects": [], "chardevs": [], "blockdev": [], "device": None}
    shown = plan.stored()
    return {
        "objects": list(shown.all_objects),
        "chardevs": list(shown.chardevs),
        "blockdev": list(shown.nodes),
        "device": shown.device,
    }


def _print_words(examined: Examined) -> None:
    about = ""
    for finding in examined.fitting.in_order:
        if finding.about != about:
            about = finding.about
            chosen = " (would be used)" if about == examined.fitting.location else ""
            print(f"\n{about}{chosen}")
        _print_finding(finding)
    if examined.steps and examined.fitting.fits:
        print("\na plug would do:")
        rows = [(str(number), step.name, step.way_back) for number, step in enumerate(examined.steps, 1)]
        print_table(("", "STEP", "TAKEN BACK BY"), rows)
    print(f"\n{examined.fitting.verdict}")


def _print_finding(finding: Finding) -> None:
    passed = "" if finding.needed or finding.fit is not Fit.PROBLEM else " (passed over)"
    print(f"{_WORDS[finding.fit]:8} {finding.subject:10} {finding.found}{passed}")
    if finding.fit is not Fit.OK:
        print(f"{'':8} {'':10} cure: {finding.cure}")
