"""Providers with one fault each, taken from what real ones get wrong, and the healthy one that they are made from.

The healthy one is a folder of files, each served as a loop device and, by its URI, as the file itself. Every fault is
one change of one or two of its scripts, and has the name of the check that has to find it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hvext.sanity.check import Level
from tests.providers import write_provider

#: A value for the healthy provider's parameter ``password``.
PASSWORD = "secret-of-the-broken-providers"
PARAMETERS = "dir folder of the volumes\npassword what a storage would ask for; not used\n"

_BEGIN = '#!/bin/sh\nset -eu\nfile=$EXTP_DIR/$VOL_NAME\ngone() { echo "there is no volume $VOL_NAME" >&2; exit 1; }\n'
#: Held until the script ends, however it ends.
_LOCK = '[ -f "$file" ] || gone\nexec 9>"$EXTP_DIR/lock"\nflock 9\n'
#: The kernel lets go of a device that somebody looks at only when he has done so.
_GONE = 'while [ -n "$(losetup --noheadings --output NAME --associated "$file")" ]; do sleep 0.02; done\n'
_FIND = 'device=$(losetup --noheadings --output NAME --associated "$file")\n'

CREATE = (
    _BEGIN
    + """\
[ ! -e "$file" ] || { echo "there is a volume $VOL_NAME already" >&2; exit 1; }
[ ${#VOL_NAME} -le 200 ] || { echo "the name is too long" >&2; exit 1; }
truncate --size "${VOL_SIZE}M" "$file.new"
mv "$file.new" "$file"
"""
)
ATTACH = (
    _BEGIN
    + _LOCK
    + _FIND
    + """\
[ -n "$device" ] || device=$(losetup --find --show --direct-io=on "$file")
printf '%s\\nkvm:file:%s\\n' "$device" "$file"
"""
)
DETACH = (
    _BEGIN
    + """\
[ -f "$file" ] || exit 0
"""
    + _LOCK
    + _FIND
    + """\
[ -z "$device" ] || losetup --detach $device
"""
    + _GONE
)
REMOVE = (
    _BEGIN
    + """\
if [ -f "$file" ]; then
    device=$(losetup --noheadings --output NAME --associated "$file")
    [ -z "$device" ] || { echo "$VOL_NAME is attached" >&2; exit 1; }
fi
rm -f "$file" "$file.new" "$file.info" "$file.info.new"
"""
)
GROW = (
    _BEGIN
    + _LOCK
    + """\
truncate --size "${VOL_NEW_SIZE}M" "$file"
"""
    + _FIND
    + """\
[ -z "$device" ] || losetup --set-capacity "$device"
"""
)
SETINFO = (
    _BEGIN
    + """\
[ -f "$file" ] || gone
printf '%s\\n' "$VOL_METADATA" >"$file.info.new"
mv "$file.info.new" "$file.info"
"""
)
VERIFY = """\
#!/bin/sh
for name in $(env | sed -n 's/^EXTP_\\([^=]*\\)=.*/\\1/p'); do
    case $name in DIR | PASSWORD | PROVIDER | ACCESS) ;; *) echo "unknown parameter $name" >&2; exit 1 ;; esac
done
"""
SNAPSHOT = (
    _BEGIN
    + """\
[ -f "$file" ] || gone
copy=$EXTP_DIR/$VOL_SNAPSHOT_NAME
[ ! -e "$copy" ] || { echo "there is a volume $VOL_SNAPSHOT_NAME already" >&2; exit 1; }
cp --sparse=always "$file" "$copy.new"
mv "$copy.new" "$copy"
"""
)
HEALTHY: Mapping[str, str] = {
    "create": CREATE, "attach": ATTACH, "detach": DETACH, "remove": REMOVE, "grow": GROW, "setinfo": SETINFO,
    "verify": VERIFY, "snapshot": SNAPSHOT,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Broken:
    """One fault: what is done wrong, in ``scripts`` (the whole text, or None for one that is missing).

    ``check`` is the one that has to find it, and ``script`` the one that it has to blame.
    """

    name: str
    fault: str
    scripts: Mapping[str, str | None] = field(default_factory=dict)
    check: str
    script: str
    level: Level = Level.CONTRACT
    parameters: str = PARAMETERS


def write_healthy(folder: Path) -> Path:
    """Write the healthy provider, ``folder/healthy``, and return it."""
    return write_provider(folder, "healthy", HEALTHY, PARAMETERS)


def write_broken(folder: Path, broken: Broken) -> Path:
    """Write a provider with one fault, ``folder/NAME``, and return it."""
    texts = {name: text for name, text in {**HEALTHY, **broken.scripts}.items() if text is not None}
    provider = write_provider(folder, broken.name, texts, broken.parameters)
    for name, text in broken.scripts.items():
        if text is None:
            (provider / name).unlink(missing_ok=True)
    return provider


def _changed(text: str, old: str, new: str) -> str:
    """Return a script with one part of it changed, which has to be there."""
    assert text.count(old) >= 1, f"{old!r} is not in the script"
    return text.replace(old, new)


_ANSWER = 'printf \'%s\\nkvm:file:%s\\n\' "$device" "$file"\n'
_FIND_WRITABLE = "device=$(losetup --noheadings --output RO,NAME --associated \"$file\" | sed -n 's/^ *0 *//p')\n"
_SET_UP = '[ -n "$device" ] || device=$(losetup --find --show --direct-io=on "$file")\n'


def _attach(answer: str) -> dict[str, str]:
    """An attach that prints something else."""
    return {"attach": _changed(ATTACH, _ANSWER, answer)}


#: A server beside the loop device. Its socket is named by a digest, which is short enough for one.
_NBD = """\
digest=$(printf %s "$VOL_NAME" | md5sum | cut -c 1-16)
socket=$EXTP_DIR/$digest.sock
servers() { grep -slzx -- "-[-]description=$digest" /proc/[0-9]*/cmdline | cut -d / -f 3; }
serve() {
    [ -n "$(servers)" ] || qemu-nbd --fork --persistent --shared=0 --format=raw --cache=none "--socket=$socket" \\
        "--description=$digest" -- "$file" </dev/null >/dev/null 2>&1 9>&-
}
unserve() {
    for each in $(servers); do kill "$each" || :; done
    while [ -n "$(servers)" ]; do sleep 0.02; done
    rm -f "$socket"
}
escaped() { printf %s "$socket" | sed 's/%/%25/g; s/#/%23/g; s/?/%3F/g; s/&/%26/g; s/+/%2B/g; s/ /%20/g'; }
"""
#: Looks for clients first. A line of /proc/net/unix is the socket that listens, every further one a connection.
_UNUSED = """\
[ "$(grep -c " $socket\\$" /proc/net/unix)" -le 1 ] || { echo "$VOL_NAME is in use" >&2; exit 1; }
"""


def nbd(
    socket: str = "$EXTP_DIR/$digest.sock", uri: str = "$(escaped)", serve: str = "serve", users: str = ""
) -> dict[str, str]:
    """The healthy scripts with an NBD server in the place of the file: it is found by what it was started with."""
    server = _changed(_NBD, "socket=$EXTP_DIR/$digest.sock", f"socket={socket}")
    answer = f'printf \'%s\\nkvm:nbd+unix:///?socket=%s\\n\' "$device" "{uri}"\n'
    return {
        "attach": _changed(ATTACH, _ANSWER, f"{server}{serve}\n{answer}"),
        "detach": _changed(DETACH, _FIND, _FIND + server + users) + "unserve\n",
        "grow": GROW + server + '[ -z "$device" ] || { unserve; serve; }\n',
    }


#: An attach that is over long before the server that it starts is there, and a detach that does not know of that one.
LATE = nbd(serve='[ -n "$(servers)" ] || { (sleep 60; serve) 9>&- </dev/null >/dev/null 2>&1 & }', users=_UNUSED)

BROKEN: tuple[Broken, ...] = (
    # --- The directory, and verify
    Broken(name="no-detach", fault="a required script is missing", scripts={"detach": None}, check="directory",
           script="detach"),
    Broken(name="comment-in-list", fault="parameters.list has a comment in it", check="parameters-list",
           parameters="# the parameters\n" + PARAMETERS, script="parameters.list"),
    Broken(name="verify-refuses", fault="verify refuses what Ganeti adds (EXTP_ACCESS)", check="verify-good",
           script="verify", scripts={"verify": _changed(VERIFY, "PROVIDER | ACCESS", "PROVIDER")}),
    Broken(name="verify-accepts", fault="verify takes every parameter", check="verify-unknown", script="verify",
           scripts={"verify": "#!/bin/sh\nexit 0\n"}),
    # --- The environment
    Broken(name="create-wants-cname", fault="create needs VOL_CNAME, which not every disk has", check="create",
           script="create", scripts={"create": _changed(CREATE, "truncate", 'echo "for $VOL_CNAME" >&2\ntruncate')}),
    Broken(name="attach-wants-size", fault="attach needs VOL_SIZE", check="attach", script="attach",
           scripts={"attach": _changed(ATTACH, _LOCK, _LOCK + 'echo "$VOL_SIZE MiB" >&2\n')}),
    # --- The answer of attach
    Broken(name="noise", fault="attach prints a message before the path", check="attach-answer", script="attach",
           scripts=_attach('echo "mapped $VOL_NAME"\n' + _ANSWER)),
    Broken(name="garbage", fault="attach prints a message behind the URI", check="attach-answer", script="attach",
           scripts=_attach(_ANSWER + "echo done\n")),
    Broken(name="relative-path", fault="attach prints the device's name without its folder", check="attach-answer",
           script="attach", scripts=_attach(_changed(_ANSWER, '"$device"', '"${device#/dev/}"'))),
    Broken(name="no-device", fault="attach prints the path of a regular file", check="attach-answer",
           script="attach", scripts=_attach(_changed(_ANSWER, '"$device"', '"$file"'))),
    Broken(name="crlf", fault="attach ends its lines with carriage returns", check="attach-answer", script="attach",
           scripts=_attach(_changed(_ANSWER, "\\n", "\\r\\n"))),
    Broken(name="no-prefix", fault="attach prints a URI without kvm: before it", check="attach-answer",
           script="attach", scripts=_attach(_changed(_ANSWER, "kvm:", ""))),
    Broken(name="dead-uri", fault="attach prints the URI of a server that is not there", check="attach-uri",
           script="attach", scripts=_attach("printf '%s\\nkvm:nbd+unix:///v?socket=%s.sock\\n' \"$device\" \"$file\"\n")),
    Broken(name="unknown-uri", fault="attach prints a URI of a protocol that QEMU has no more", check="attach-uri",
           script="attach", scripts=_attach("printf '%s\\nkvm:sheepdog:%s\\n' \"$device\" \"$file\"\n")),
    # --- Idempotence
    Broken(name="new-device", fault="attach makes another device each time", check="attach-again", script="attach",
           scripts={"attach": _changed(ATTACH, '[ -n "$device" ] || ', "")}),
    Broken(name="attach-once", fault="attach of an attached volume fails", check="attach-again", script="attach",
           scripts={"attach": _changed(ATTACH, _SET_UP, '[ -z "$device" ] || { echo "it is attached" >&2; exit 1; }\n'
                                       + _SET_UP)}),
    Broken(name="detach-once", fault="detach of a detached volume fails", check="detach-again", script="detach",
           scripts={"detach": _changed(DETACH, '[ -z "$device" ] || losetup', "losetup")}),
    Broken(name="grow-once", fault="grow to the size that it has fails", check="grow-again", script="grow",
           scripts={"grow": _changed(GROW, "truncate", '[ "$(stat -c %s "$file")" -lt $((VOL_NEW_SIZE << 20)) ]\ntruncate')}),
    Broken(name="grow-adds", fault="grow adds the difference to whatever is there", check="grow-again", script="grow",
           scripts={"grow": _changed(GROW, '"${VOL_NEW_SIZE}M"', '"+$((VOL_NEW_SIZE - VOL_SIZE))M"')}),
    # --- Failures that are not told
    Broken(name="attach-anything", fault="attach ends with 0 after a failure", check="attach-unknown", script="attach",
           scripts={"attach": _changed(_changed(ATTACH, '[ -f "$file" ] || gone\n', ""), "set -eu", "set -u") + "exit 0\n"}),
    Broken(name="grow-makes", fault="grow of an unknown volume makes one", check="grow-unknown", script="grow",
           scripts={"grow": _changed(GROW, '[ -f "$file" ] || gone\n', "")}),
    Broken(name="setinfo-unheard", fault="setinfo fails, says so and ends with 0", check="exit-status",
           script="setinfo", scripts={"setinfo": _BEGIN.replace("set -eu\n", "")
                                      + 'echo "$VOL_METADATA" >"$EXTP_DIR/info/$VOL_NAME"\nexit 0\n'}),
    Broken(name="setinfo-refuses", fault="setinfo is not there and says so with status 1", check="setinfo",
           script="setinfo", scripts={"setinfo": '#!/bin/sh\necho "not supported" >&2\nexit 1\n'}),
    Broken(name="remove-nothing", fault="remove ends with 0 and removes nothing", check="removed-is-gone",
           script="remove", scripts={"remove": "#!/bin/sh\nexit 0\n"}),
    Broken(name="no-snapshot", fault="snapshot ends with 0 and makes none", check="snapshot", script="snapshot",
           scripts={"snapshot": "#!/bin/sh\nexit 0\n"}),
    # --- What is left over
    Broken(name="leak", fault="each attach leaves one more loop device, which detach leaves, too",
           check="detach-leaves-nothing", script="detach",
           scripts={"attach": _changed(ATTACH, _FIND, _FIND_WRITABLE + 'losetup --find --read-only "$file"\n'),
                    "detach": _changed(_changed(DETACH, _FIND, _FIND_WRITABLE), _GONE, ""),
                    "grow": _changed(GROW, _FIND, _FIND_WRITABLE),
                    "remove": _BEGIN + 'rm -f "$file" "$file.new" "$file.info" "$file.info.new"\n'}),
    Broken(name="helper-stays", fault="a helper that attach starts outlives detach", check="detach-leaves-nothing",
           script="detach", scripts=_attach("setsid sleep 20 </dev/null >/dev/null 2>&1 9>&- &\n" + _ANSWER)),
    Broken(name="holds-stdout", fault="a helper that attach starts keeps its standard output", check="attach-lets-go",
           script="attach",
           scripts=_attach('[ -e "$file.pid" ] || { setsid sleep 60 9>&- & echo $! >"$file.pid"; }\n' + _ANSWER)
           | {"detach": DETACH + '[ ! -e "$file.pid" ] || kill "$(cat "$file.pid")"\nrm -f "$file.pid"\n'}),
    Broken(name="remove-forgets", fault="remove leaves the file with the metadata", check="remove-leaves-nothing",
           script="remove", scripts={"remove": _changed(REMOVE, ' "$file.info" "$file.info.new"', "")}),
    Broken(name="detach-cuts-off", fault="detach ends a server while somebody is connected", check="detach-in-use",
           script="detach", level=Level.DATA, scripts=nbd()),
    Broken(name="detach-lazy", fault="detach is refused, and the device goes with its last user all the same",
           check="detach-in-use", script="detach", level=Level.DATA,
           scripts={"detach": _changed(DETACH, _GONE, 'sleep 0.2\n[ -z "$(losetup --noheadings --output NAME --associated '
                                       '"$file")" ] || { echo "$device is in use" >&2; exit 1; }\n')}),
    Broken(name="removes-attached", fault="remove deletes a volume that is attached, whose device then stays",
           check="remove-attached", script="remove", level=Level.DATA,
           scripts={"remove": _BEGIN + 'rm -f "$file" "$file.new" "$file.info" "$file.info.new"\n'}),
    Broken(name="lock-stays", fault="an attach that is killed leaves a lock for ever", check="killed-attach",
           script="attach", level=Level.STRESS,
           scripts={"attach": _changed(ATTACH, _LOCK, """\
[ -f "$file" ] || gone
tries=0
until mkdir "$file.locked" 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || { echo "$VOL_NAME is locked" >&2; exit 1; }
    sleep 0.02
done
trap 'rmdir "$file.locked"' EXIT
sleep 0.05
"""), "remove": REMOVE + 'rm -rf "$file.locked"\n'}),
    # --- Volumes beside each other, and names
    Broken(name="one-for-all", fault="all volumes are one: VOL_NAME is ignored", check="two-volumes", script="create",
           scripts={name: _changed(text, "file=$EXTP_DIR/$VOL_NAME", "file=$EXTP_DIR/volume")
                    for name, text in HEALTHY.items() if name not in ("verify", "snapshot")} | {"snapshot": None}),
    Broken(name="detach-all", fault="detach takes down the other volumes, too", check="detach-other", script="detach",
           scripts={"detach": _changed(DETACH, _FIND, "device=$(losetup --noheadings --output NAME,BACK-FILE |"
                                       ' sed -n "s|^\\([^ ]*\\) *$EXTP_DIR/.*|\\1|p")\n')}),
    Broken(name="remove-all", fault="remove deletes all files whose names begin alike", check="remove-other",
           script="remove",
           scripts={"remove": _changed(REMOVE, 'rm -f "$file"', 'rm -f "$EXTP_DIR/${VOL_NAME%%-[!-]*-*}"* "$file"')}),
    Broken(name="cut-at-dot", fault="names are cut at the first dot", check="name-ganeti", script="create",
           scripts={name: _changed(text, "file=$EXTP_DIR/$VOL_NAME", "file=$EXTP_DIR/${VOL_NAME%%.*}")
                    for name, text in HEALTHY.items() if name not in ("verify", "snapshot")} | {"snapshot": None}),
    Broken(name="cut-long", fault="long names are cut off", check="name-long", script="create",
           scripts={name: _changed(text, "file=$EXTP_DIR/$VOL_NAME", 'file=$EXTP_DIR/$(printf %.100s "$VOL_NAME")')
                    for name, text in HEALTHY.items() if name not in ("verify", "snapshot")} | {"snapshot": None}),
    Broken(name="uri-not-encoded", fault="a socket has the volume's name, which the URI has as it is",
           check="name-signs", script="attach", scripts=nbd(
               socket='$EXTP_DIR/$digest$(printf %s "$VOL_NAME" | tail -c 30).sock', uri="$socket", users=_UNUSED)),
    Broken(name="socket-too-long", fault="a socket has the volume's name, for which it is too short",
           check="name-long", script="attach",
           scripts=nbd(socket="$EXTP_DIR/$VOL_NAME.sock", serve="serve || :", users=_UNUSED)),
    Broken(name="unquoted", fault="remove does not quote the name", check="name-signs", script="remove",
           scripts={"remove": _changed(REMOVE, 'rm -f "$file"', "rm -f $file")}),
    Broken(name="cname-by-eval", fault="VOL_CNAME is read by a shell", check="cname", script="create",
           scripts={"create": CREATE + 'eval "label=${VOL_CNAME:-none}"\n'}),
    # --- Sizes
    Broken(name="rounds-down", fault="create rounds down to units of 4 MiB", check="size-path", script="create",
           scripts={"create": _changed(CREATE, '"${VOL_SIZE}M"', '"$((VOL_SIZE / 4 * 4))M"')}),
    Broken(name="old-size", fault="grow uses VOL_SIZE, the old size", check="grow", script="grow",
           scripts={"grow": _changed(GROW, "VOL_NEW_SIZE", "VOL_SIZE")}),
    Broken(name="device-keeps-size", fault="grow does not tell the block device", check="grow-path", script="grow",
           scripts={"grow": _changed(GROW, '[ -z "$device" ] || losetup --set-capacity "$device"', ":")}),
    Broken(name="uri-keeps-size", fault="grow does not tell what serves the URI", check="grow-uri", script="grow",
           scripts={"attach": _changed(ATTACH, _FIND + _SET_UP + _ANSWER, """\
set -- $(losetup --noheadings --output NAME --associated "$file" | sort -V)
[ $# -ge 2 ] || set -- "$(losetup --find --show --direct-io=on "$file")" "$(losetup --find --show --direct-io=on "$file")"
printf '%s\\nkvm:host_device:%s\\n' "$1" "$2"
"""), "detach": _changed(DETACH, "losetup --detach $device", 'for each in $device; do losetup --detach "$each"; done'),
                    "grow": _changed(GROW, 'losetup --set-capacity "$device"',
                                     'losetup --set-capacity "$(echo "$device" | sort -V | head -n 1)"')}),
    # --- Bytes
    Broken(name="grow-anew", fault="grow makes the volume anew", check="grow-keeps-data", script="grow",
           level=Level.DATA, scripts={"grow": _changed(GROW, "truncate", 'truncate --size 0 "$file"\ntruncate')}),
    Broken(name="create-truncates", fault="create of a name that is taken empties the volume",
           check="create-existing", script="create", level=Level.DATA,
           scripts={"create": _changed(CREATE, '[ ! -e "$file" ] || { echo "there is a volume $VOL_NAME already" >&2; exit 1; }\n', "")}),
    Broken(name="other-bytes", fault="the URI leads to other bytes than the path", check="path-to-uri",
           script="attach", level=Level.DATA,
           scripts={"attach": _changed(ATTACH, _ANSWER, '[ -e "$file.uri" ] || cp "$file" "$file.uri"\n'
                                       "printf '%s\\nkvm:file:%s.uri\\n' \"$device\" \"$file\"\n"),
                    "remove": _changed(REMOVE, 'rm -f "$file"', 'rm -f "$file" "$file.uri"'),
                    "grow": GROW + '[ ! -e "$file.uri" ] || truncate --size "${VOL_NEW_SIZE}M" "$file.uri"\n'}),
    Broken(name="uri-read-only", fault="the URI can only be read", check="write-read-uri", script="attach",
           level=Level.DATA,
           scripts={"attach": _changed(ATTACH, _FIND + _SET_UP + _ANSWER, """\
set -- $(losetup --noheadings --output NAME --associated "$file" | sort -V)
[ $# -ge 2 ] || set -- "$(losetup --find --show --direct-io=on "$file")" \
    "$(losetup --find --show --read-only --direct-io=on "$file")"
printf '%s\\nkvm:host_device:%s\\n' $(losetup --noheadings --output RO,NAME --associated "$file" | sort | sed 's/^ *[01] *//')
"""), "detach": _changed(DETACH, "losetup --detach $device", 'for each in $device; do losetup --detach "$each"; done'),
                    "grow": _changed(GROW, 'losetup --set-capacity "$device"',
                                     'for each in $device; do losetup --set-capacity "$each"; done')}),
    Broken(name="attaches-copy", fault="attach gives out a copy, and detach drops it", check="write-read-path",
           script="attach", level=Level.DATA,
           scripts={"attach": _changed(ATTACH, _LOCK, _LOCK + '[ -e "$file.copy" ] || cp "$file" "$file.copy"\n'
                                       "file=$file.copy\n"),
                    "detach": _changed(DETACH, _FIND, "file=$file.copy\n[ -e \"$file\" ] || exit 0\n" + _FIND)
                    + 'rm -f "$file"\n',
                    "remove": _changed(REMOVE, 'rm -f "$file"', '[ ! -e "$file.copy" ]\nrm -f "$file"'),
                    "grow": _changed(GROW, _FIND, 'if [ -e "$file.copy" ]; then file=$file.copy; '
                                     'truncate --size "${VOL_NEW_SIZE}M" "$file"; fi\n' + _FIND)}),
    Broken(name="shared-bytes", fault="all volumes have their bytes in one file", check="two-volumes-data",
           script="attach", level=Level.DATA,
           scripts={"create": _changed(CREATE, 'mv "$file.new" "$file"', 'mv "$file.new" "$file"\n'
                                       'truncate --size ">${VOL_SIZE}M" "$EXTP_DIR/pool"'),
                    "grow": _changed(GROW, _FIND, 'truncate --size ">${VOL_NEW_SIZE}M" "$EXTP_DIR/pool"\n'
                                     'device=$(cat "$file.device" 2>/dev/null || :)\n'),
                    "attach": _changed(ATTACH, _FIND + _SET_UP + _ANSWER, """\
device=$(cat "$file.device" 2>/dev/null || :)
[ -n "$device" ] || device=$(losetup --find --show --direct-io=on "$EXTP_DIR/pool")
echo "$device" >"$file.device"
echo "$device"
"""), "detach": _changed(_changed(DETACH, _FIND, 'device=$(cat "$file.device" 2>/dev/null || :)\n'),
                                       "losetup --detach $device", "losetup --detach $device || :")
                    + 'rm -f "$file.device"\n',
                    "remove": _BEGIN + '[ ! -e "$file.device" ]\nrm -f "$file" "$file.info"\n', "snapshot": None}),
    Broken(name="snapshot-shares", fault="a snapshot is a link to the volume's own bytes", check="snapshot-data",
           script="snapshot", level=Level.DATA,
           scripts={"snapshot": _changed(SNAPSHOT, 'cp --sparse=always "$file" "$copy.new"', 'ln "$file" "$copy.new"')}),
    Broken(name="close-does-nothing", fault="close ends with 0 and does nothing", check="close-fence", script="close",
           level=Level.DATA, scripts={"close": "#!/bin/sh\nexit 0\n"}),
    Broken(name="open-one-mode", fault="open fails for shared access", check="open-shared", script="open",
           scripts={"open": '#!/bin/sh\n[ "$VOL_OPEN_EXCLUSIVE" = True ]\n'}),
    # --- Many at once, and killed
    Broken(name="no-lock", fault="attaches of one volume at once make a device each", check="attach-20-times",
           script="attach", level=Level.STRESS,
           scripts={"attach": _changed(_changed(ATTACH, "flock 9\n", ""), _SET_UP, '[ -n "$device" ] || { sleep 0.2; '
                                       'device=$(losetup --find --show --direct-io=on "$file"); }\n')}),
    Broken(name="create-in-pieces", fault="a create that is killed leaves a name that is neither taken nor free",
           check="killed-create", script="create", level=Level.STRESS,
           scripts={"create": _changed(CREATE, "truncate", 'mkdir "$file.making"\nsleep 0.3\ntruncate')
                    + 'rmdir "$file.making"\n'}),
    # --- Secrets
    Broken(name="password-argument", fault="a helper gets the password as an argument", check="secrets-argv",
           script="attach", scripts=_attach('sh -c "sleep 0.05" login "${EXTP_PASSWORD:-}"\n' + _ANSWER)),
    Broken(name="password-printed", fault="grow prints the password", check="secrets-output", script="grow",
           scripts={"grow": GROW + 'echo "logged in with ${EXTP_PASSWORD:-}" >&2\n'}),
)  # fmt: skip
