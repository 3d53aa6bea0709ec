"""The commands about providers and their volumes, without a guest."""

from __future__ import annotations

from hvext.cli.parser.shared import Command, as_json, dry_run, parameters, scripts, size_mib, volume
from hvext.core.documentation import page


def volume_commands(command: Command) -> None:
    """Make ``providers``, ``provider`` and a command for each action."""
    command("providers", "providers:list_providers", "list the providers on the search path", scripts, as_json)
    one = command(
        "provider", "providers:show_provider", "show one provider, and what is wrong with it", scripts, as_json
    )
    one.add_argument("provider", metavar="NAME", help="the provider's name")
    create = command("create", "volumes:create", "create a volume", volume, scripts, dry_run, as_json)
    create.add_argument("--size", type=size_mib, required=True, metavar="MIB", help="in MiB: 1024 is 1 GiB")
    command("remove", "volumes:remove", "remove a volume with all its data", volume, scripts, dry_run, as_json)
    grow = command(
        "grow", "volumes:grow", "grow a volume (of a running guest: see resize)", volume, scripts, dry_run, as_json,
        epilog="The script is given both sizes, as Ganeti gives them: some use the old one. No script\n"
        "says how large a volume is; resize asks the guest that has it, so it needs no --size.",
    )  # fmt: skip
    grow.add_argument("--size", type=size_mib, required=True, metavar="MIB", help="the size it has (VOL_SIZE)")
    grow.add_argument(
        "--new-size", type=size_mib, required=True, metavar="MIB", help="the size it is to have (VOL_NEW_SIZE)"
    )
    attach = command(
        "attach", "volumes:attach", "attach and open a volume on this host", volume, scripts, dry_run, as_json
    )
    attach.add_argument("--shared", action="store_true", help="open it for shared access, as for migration")
    command("detach", "volumes:detach", "detach a volume from this host", volume, scripts, dry_run, as_json)
    open_ = command("open", "volumes:open_volume", "open an attached volume for I/O", volume, scripts, dry_run, as_json)
    open_.add_argument("--shared", action="store_true", help="open it for shared access, as for migration")
    command(
        "close", "volumes:close_volume", "close a volume: no more I/O from this host", volume, scripts, dry_run, as_json
    )
    info = command("setinfo", "volumes:set_info", "store metadata with a volume", volume, scripts, dry_run, as_json)
    info.add_argument("--metadata", required=True, metavar="TEXT", help="Ganeti stores originstname+INSTANCE")
    snapshot = command("snapshot", "volumes:snapshot", "take a snapshot of a volume", volume, scripts, dry_run, as_json)
    snapshot.add_argument("--snapshot-name", required=True, metavar="NAME")
    snapshot.add_argument("--snapshot-size", type=size_mib, required=True, metavar="MIB")
    verify = command("verify", "volumes:verify", "have a provider check parameters", scripts, as_json)
    verify.add_argument("provider", metavar="PROVIDER", help="the provider's name")
    parameters(verify)


def sanity_command(command: Command) -> None:
    """Make ``sanity``."""
    sanity = command(
        "sanity", "sanity:sanity", "run a provider through the whole contract, on throw-away volumes",
        parameters, scripts, as_json,
        epilog="Volumes have names of their own, and no other is touched; they are removed, also after Ctrl-C. Exit\n"
        "status: 0 all passed, 1 a check failed or there is no such provider, 2 wrong use.\n"
        f"{page('sanity')} says what is checked.",
    )  # fmt: skip
    sanity.add_argument("provider", metavar="PROVIDER", nargs="?", help="the provider's name")
    sanity.add_argument("--level", choices=("contract", "data", "stress"), default="data", help="default: %(default)s")
    sanity.add_argument("--skip", action="append", default=[], metavar="CHECK", help="leave a check out (repeatable)")
    sanity.add_argument(
        "--size", type=size_mib, default=32, metavar="MIB", help="of the volumes (default: %(default)s)"
    )
    sanity.add_argument(
        "--watch", action="append", default=[], metavar="DIR",
        help="a folder that only this provider uses meanwhile: whatever is new in it is left over (repeatable)",
    )  # fmt: skip
    sanity.add_argument(
        "--place", action="append", default=[], metavar="NAME=VALUE,…",
        help="for a provider that makes no storage: the parameters of what one volume at a time may have, of at least\n"
        "twice the size (repeatable). ITS DATA ARE LOST",
    )  # fmt: skip
    sanity.add_argument("--junit", metavar="FILE", help="write JUnit XML there")
    sanity.add_argument("--list", action="store_true", help="list the checks of the level, and run none")
    sanity.add_argument(
        "-v", "--verbose", action="store_true", help="a line for each check that is skipped as well, in its place"
    )


def new_provider_command(command: Command) -> None:
    """Make ``new-provider``."""
    new = command("new-provider", "new_provider:new_provider", "write a provider to begin with", dry_run, as_json)
    new.add_argument("name", metavar="NAME")
    new.add_argument("--language", choices=("sh", "python"), default="sh", help="default: %(default)s")
    new.add_argument("--folder", metavar="DIR", default=".", help="where its folder is made (default: here)")
