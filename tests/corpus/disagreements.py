"""Where hvext and a QEMU do not make the same of a text on purpose, and why.

The corpus test fails for every disagreement that is not listed here, and for every entry that is no longer one. Where
QEMU is right, hvext has a fault: that is mended, and never listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: The QEMU releases that were asked: one with QEMU's own URI parser and one with GLib's.
RELEASES = ("7.2", "10.0")


class Verdict(StrEnum):
    """What hvext and one QEMU make of one text."""

    SAME = "both open the same"
    REFUSED = "both refuse"
    STRICTER = "hvext refuses what QEMU opens"
    WIDER = "hvext opens what QEMU refuses"
    DIFFERENT = "each opens something else"
    UNOPENED = "hvext takes it, and QEMU opens it in no form"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Rows on which hvext and QEMU part for one reason; ``releases`` are those of QEMU that do."""

    verdict: Verdict
    why: str
    ids: tuple[str, ...]
    releases: tuple[str, ...] = RELEASES


DISAGREEMENTS: tuple[Disagreement, ...] = (
    Disagreement(
        verdict=Verdict.STRICTER,
        why="The protocol knows no user or password there; QEMU drops them without a word.",
        ids=(
            "nbd-uri-user",
            "nbd-uri-user-password",
            "nbd-uri-user-empty",
            "nbd-unix-user",
            "gluster-user",
            "gluster-user-password",
            "ssh-user-password",
            "nfs-user",
            "nfs-user-password",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="Nobody is ever sent a fragment: QEMU drops it, or libcurl does. hvext says that '#' is written %23.",
        ids=(
            "nbd-uri-fragment",
            "nbd-uri-fragment-empty",
            "nbd-unix-fragment",
            "gluster-fragment",
            "ssh-fragment",
            "nfs-fragment",
            "http-fragment",
            "https-fragment",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="No server has port 0: QEMU takes the usual port instead, or asks the client library for port 0.",
        ids=(
            "nbd-uri-port-zero",
            "nbd-colons-port-zero",
            "iscsi-port-zero",
            "gluster-port-zero",
            "ssh-port-zero",
            "nfs-port-zero",
            "http-port-zero",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "Ports are written with one to five digits. QEMU takes leading zeros, and in nbd:HOST:PORT whatever the C "
            "library takes: signs, blanks, names of services, 65536 for port 0."
        ),
        ids=(
            "nbd-colons-port-65536",
            "nbd-colons-port-plus",
            "nbd-colons-port-blank",
            "nbd-colons-port-service",
            "iscsi-port-65536",
            "iscsi-port-letters",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "No host can have that name or address, so it would be found out at the time of opening; libssh and "
            "libcurl refuse most of them themselves."
        ),
        ids=(
            "nbd-uri-ipv6-name",
            "nbd-uri-ipv6-junk",
        ),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "No host can have that name or address, so it would be found out at the time of opening; libssh and "
            "libcurl refuse most of them themselves."
        ),
        ids=(
            "nbd-uri-host-encoded",
            "nbd-uri-host-encoded-blank",
            "nbd-uri-host-encoded-colon",
            "nbd-uri-host-comma",
            "nbd-colons-host-blank",
            "nbd-colons-user",
            "iscsi-password-raw-at",
            "iscsi-host-blank",
            "iscsi-host-encoded",
            "iscsi-ipv6-no-brackets",
            "iscsi-ipv6-open-bracket",
            "gluster-host-encoded",
            "ssh-host-encoded",
            "nfs-host-blank",
            "nfs-host-encoded",
            "unknown-path-behind-blank",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "No host can have that name or address, so it would be found out at the time of opening; libssh and "
            "libcurl refuse most of them themselves."
        ),
        ids=(
            "nbd-uri-host-blank",
            "gluster-host-blank",
            "ssh-user-raw-at",
        ),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "A name that is not ASCII: QEMU 10 turns it into its IDNA form, QEMU 7.2 refuses it; libiscsi is given it "
            "as it is."
        ),
        ids=(
            "nbd-uri-host-utf8",
            "gluster-host-utf8",
            "ssh-host-utf8",
            "nfs-host-utf8",
        ),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "A name that is not ASCII: QEMU 10 turns it into its IDNA form, QEMU 7.2 refuses it; libiscsi is given it "
            "as it is."
        ),
        ids=("iscsi-host-utf8",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="There is no host in it; for a server on this host the name is written.",
        ids=(
            "iscsi-host-empty",
            "iscsi-host-empty-port",
            "http-three-slashes",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="The name ends at %00 for QEMU 7.2, which then opens another one; QEMU 10 refuses it.",
        ids=(
            "nbd-uri-export-nul",
            "nbd-unix-socket-nul",
            "nbd-unix-socket-abstract",
            "nbd-unix-export-nul",
            "gluster-nul",
            "ssh-user-nul",
            "ssh-path-nul",
            "nfs-path-nul",
        ),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU's JSON has no way to write a name that is not UTF-8.",
        ids=(
            "nbd-uri-export-not-utf8",
            "nbd-unix-socket-not-utf8",
            "gluster-not-utf8",
            "ssh-path-not-utf8",
            "nfs-path-not-utf8",
        ),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "QEMU 10 takes characters that RFC 3986 does not allow there, QEMU 7.2 refuses them; hvext says how each "
            "is written."
        ),
        ids=(
            "nbd-uri-export-raw-blank",
            "nbd-uri-export-raw-utf8",
            "nbd-uri-export-raw-newline",
            "nbd-uri-export-raw-tab",
            "nbd-uri-export-raw-quote",
            "nbd-uri-export-raw-backslash",
            "nbd-uri-export-raw-bracket",
            "nbd-uri-export-raw-brace",
            "nbd-uri-export-raw-caret",
            "nbd-uri-blank-behind",
            "nbd-unix-socket-raw-blank",
            "nbd-unix-socket-raw-utf8",
            "gluster-raw-blank",
            "gluster-raw-utf8",
            "gluster-raw-newline",
            "gluster-raw-backslash",
            "ssh-path-raw-blank",
            "ssh-path-raw-utf8",
            "ssh-path-raw-newline",
            "nfs-uid-blank",
            "nfs-path-raw-blank",
            "nfs-path-raw-utf8",
            "nfs-path-raw-newline",
            "nfs-path-raw-backslash",
        ),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "QEMU 10 takes characters that RFC 3986 does not allow there, QEMU 7.2 refuses them; hvext says how each "
            "is written."
        ),
        ids=(
            "json-raw-file",
            "json-raw-nbd-dotted",
            "json-raw-nbd",
            "json-raw-nested-filename",
            "json-raw-nested-dotted-filename",
            "json-raw-backing",
            "json-raw-raw",
            "json-raw-offset",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="What a relative path means depends on the directory that QEMU happens to run in.",
        ids=(
            "nbd-unix-socket-relative",
            "nbd-colons-unix-relative",
            "rbd-no-colon",
            "file-relative",
            "file-prefix-twice",
            "file-prefix-nbd",
            "file-bare-relative",
            "file-bare-relative-slash",
            "file-bare-relative-dot",
            "file-bare-relative-colon",
            "file-blank-before",
            "host_device-relative",
            "json-file-filename-protocol",
            "json-file-filename-json",
            "unknown-option",
            "unknown-dash",
            "unknown-multipath-noise",
            "unknown-blank",
            "unknown-tab",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="What a relative path means depends on the directory that QEMU happens to run in.",
        ids=("gluster-unix-relative",),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="The path of a unix socket has at most 107 bytes; QEMU takes one more, which other programs cannot reach.",
        ids=(
            "nbd-unix-socket-108",
            "nbd-colons-unix-108",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="The path of a unix socket has at most 107 bytes; QEMU takes one more, which other programs cannot reach.",
        ids=("gluster-unix-108",),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="An empty path names no socket.",
        ids=("nbd-colons-unix-empty",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="An empty path names no socket.",
        ids=("gluster-unix-empty",),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="The parameter stands there twice. QEMU takes the last, or refuses.",
        ids=("nbd-unix-socket-twice",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="The parameter stands there twice. QEMU takes the last, or refuses.",
        ids=(
            "rbd-colon-twice",
            "rbd-snapshot-twice",
            "ssh-check-twice",
            "nfs-uid-twice",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU 10 takes ';' for a part of the value, QEMU 7.2 for the end of it. hvext asks for %3B.",
        ids=("nbd-unix-socket-semicolon",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU 10 takes ';' for a part of the value, QEMU 7.2 for the end of it. hvext asks for %3B.",
        ids=("ssh-query-semicolon",),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU ignores query parameters that it does not know; hvext drops nothing silently.",
        ids=(
            "iscsi-target-user",
            "iscsi-rdma-query-other",
            "iscsi-query-unknown",
            "iscsi-query-auth",
            "iscsi-query-timeout",
            "iscsi-query-cmd-timeout",
            "iser-query-unknown",
            "ssh-check-and-unknown",
            "ssh-check-dashes",
            "ssh-query-unknown",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="A port is ignored by QEMU, which asks the portmapper; hvext does not let it look as if it were used.",
        ids=(
            "nfs-port",
            "nfs-port-other",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "Numbers are written as digits, and are not cut to what fits: QEMU takes signs, takes 2^32 for 0 and what "
            "is too large for the largest."
        ),
        ids=(
            "iscsi-lun-huge",
            "iscsi-lun-negative",
            "iscsi-lun-plus",
            "iscsi-lun-blank",
            "nfs-uid-plus",
            "nfs-uid-2-32",
            "nfs-readahead-huge",
            "nfs-pagecache-huge",
            "nfs-debug-huge",
            "nvme-namespace-zero",
            "nvme-namespace-negative",
            "nvme-namespace-huge",
            "json-negative",
            "json-huge",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU 10 takes a parameter without a value for none at all.",
        ids=("nfs-uid-no-value",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "Text behind the port: QEMU reads 'to' and the address family and drops them, and drops what it does not "
            "know."
        ),
        ids=(
            "nbd-colons-port-option",
            "nbd-colons-port-option-ipv4",
            "nbd-colons-port-option-unknown",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="It must start with '//'. QEMU reads the first part as the volume and takes localhost for the server.",
        ids=(
            "gluster-unix-one-slash",
            "gluster-one-slash",
            "gluster-no-slashes",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU 7.2 uses TCP instead, with a warning that nobody sees; QEMU 10 has no RDMA.",
        ids=("gluster-rdma",),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU would log in without a name and a password, though the URI has one of the two.",
        ids=(
            "iscsi-user-empty-password",
            "iscsi-password-empty",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="A '%' that encodes nothing: libiscsi makes some byte of it.",
        ids=("iscsi-target-bad-percent",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="A target without a name cannot be logged in to.",
        ids=("iscsi-target-empty",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="A fingerprint that no key can have: every server would be refused.",
        ids=(
            "ssh-check-md5-empty",
            "ssh-check-md5-short",
            "ssh-check-md5-not-hex",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="A control character in a password is taken for a mistake.",
        ids=("http-password-control",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="Nothing is where the pool's, the namespace's, the image's or the snapshot's name should be.",
        ids=(
            "rbd-snapshot-empty",
            "rbd-snapshot-empty-option",
            "rbd-namespace-empty",
            "rbd-image-slash-behind",
            "rbd-slashes",
            "rbd-slashes-three",
            "rbd-image-empty",
            "rbd-image-empty-snapshot",
            "rbd-pool-empty",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "QEMU splits the text where nobody expects it: at the first '@' and '/' of all of it, options too. hvext "
            "asks for a backslash."
        ),
        ids=(
            "rbd-option-at",
            "rbd-option-slash-before-image",
            "rbd-at-before-slash",
            "rbd-four-parts",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="Ceph has no option of such a name, or the option has no value or none that it can have.",
        ids=(
            "rbd-option-empty",
            "rbd-option-no-name",
            "rbd-id-empty",
            "rbd-conf-empty",
            "rbd-option-dash",
            "rbd-option-comma",
            "rbd-key-secret-option",
            "rbd-keyvalue-option",
            "rbd-mon-host-empty",
            "rbd-rbd-cache-odd",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "That is no PCI address as the kernel writes it: four or more lower-case hexadecimal digits of the "
            "domain, then bus, device and function."
        ),
        ids=(
            "nvme-empty-device",
            "nvme-no-domain",
            "nvme-upper-digits",
            "nvme-junk",
            "nvme-traversal",
            "nvme-blank",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "Formats, filters and drivers without storage are not taken: volumes are raw, and hvext makes the layers "
            "above them itself."
        ),
        ids=(
            "json-qcow2",
            "json-qcow2-backing",
            "json-luks",
            "json-throttle",
            "json-quorum",
            "json-blkverify",
            "json-null-co",
            "json-null-co-text",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="How a disk is opened is said by the disk's options; the URI says only where it is.",
        ids=(
            "json-cache",
            "json-read-only",
            "json-bool-text",
            "json-bool-number",
            "json-bool-word",
            "json-cache-dotted",
            "json-node-name",
            "json-locking",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            "QEMU finds unknown options only after it has connected, which is not part of the recording, and refuses "
            "them then."
        ),
        ids=("json-unknown-option",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU's own older spellings, without a place in its schema.",
        ids=(
            "json-rbd-filename",
            "json-no-driver-file",
            "json-no-driver-protocol",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU's JSON parser also takes single quotes.",
        ids=(
            "json-single-quotes",
            "json-mixed-quotes",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="QEMU's JSON parser keeps a NUL as two other bytes, and opens a file of another name.",
        ids=("json-nul-escape",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="Drivers for tests of QEMU itself; there is no volume behind them.",
        ids=(
            "unknown-blkdebug",
            "unknown-blkverify",
            "unknown-null-co",
            "unknown-null-aio",
        ),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why=(
            'QEMU 10 opens it, but takes the whole text with the prefix for the path. json:{"driver":"io_uring",…} is '
            "the way."
        ),
        ids=("unknown-io-uring",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="QEMU has the option and no URI for it: this is hvext's own.",
        ids=(
            "nbd-uri-query-reconnect-delay",
            "nbd-uri-query-open-timeout",
            "nbd-unix-socket-and-reconnect-delay",
        ),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="QEMU has a device for it and no URI: this is hvext's own.",
        ids=(
            "vhost-user-plain",
            "vhost-user-comma",
            "vhost-user-blank",
        ),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="QEMU can do it and has no URI for it: this is the NBD project's.",
        ids=("unknown-nbd-vsock",),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="An empty port is the usual one (RFC 3986); QEMU 7.2 refuses it.",
        ids=(
            "nbd-uri-port-empty",
            "gluster-port-empty",
            "ssh-port-empty",
            "nfs-port-empty",
        ),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="The zone of an IPv6 address as it is usually written; QEMU 10 wants %25 for its '%'.",
        ids=("nbd-uri-ipv6-zone",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="QEMU 10 decodes a query twice. What is no query after the first time is refused.",
        ids=(
            "nbd-unix-socket-encoded-ampersand",
            "nbd-unix-socket-encoded-percent",
        ),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why=(
            "QEMU 10 takes the empty host of gluster+unix:// for a host, and refuses it; the node opens. Without the "
            "two slashes QEMU takes it, and hvext does not."
        ),
        ids=(
            "gluster-unix",
            "gluster-unix-deep-path",
            "gluster-unix-encoded",
        ),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="A name longer than QEMU's or libiscsi's own text parser takes; the node takes it.",
        ids=(
            "nbd-colons-host-4096",
            "iscsi-host-255",
            "iscsi-host-4096",
        ),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="QEMU 10 resolves '..' in paths before it decodes them; hvext leaves paths alone, as QEMU 7.2 does.",
        ids=("gluster-dots",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="hvext splits a query at ';' as well as at '&'.",
        ids=("nfs-query-semicolon",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.DIFFERENT,
        why="QEMU 10 resolves '..' in paths before it decodes them; hvext leaves paths alone, as QEMU 7.2 does.",
        ids=(
            "nbd-uri-export-dots",
            "ssh-path-dots",
            "nfs-path-dots",
        ),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.DIFFERENT,
        why="QEMU 7.2 leaves the brackets of an IPv6 address in the host's name, which then cannot be found.",
        ids=(
            "gluster-ipv6",
            "gluster-ipv6-port",
            "gluster-ipv6-zone",
            "ssh-ipv6",
            "ssh-ipv6-port",
            "ssh-ipv6-zone",
            "nfs-ipv6",
            "nfs-ipv6-zone",
        ),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.DIFFERENT,
        why="QEMU 10 decodes a query twice, and opens another socket.",
        ids=("nbd-unix-socket-percent-twice",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.DIFFERENT,
        why="QEMU 10 asks for a host without a name instead of localhost.",
        ids=(
            "gluster-host-empty",
            "gluster-host-empty-port",
        ),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.DIFFERENT,
        why="QEMU 7.2 takes all of the text behind the '//' for the user.",
        ids=("ssh-user-empty",),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.DIFFERENT,
        why="QEMU would log in as nobody; hvext's node asks for the password, which comes from the caller.",
        ids=("iscsi-user-only",),
    ),
    Disagreement(
        verdict=Verdict.UNOPENED,
        why=(
            "QEMU has no URI for it; with the NBD project's, hvext's node looks for certificates or keys that are not "
            "there."
        ),
        ids=(
            "nbds-plain",
            "nbds-port",
            "nbds-ipv6",
            "nbds-no-export",
            "nbds-unix-hostname",
            "nbds-certificates",
            "nbds-hostname",
            "nbds-psk",
            "nbds-verify-off",
        ),
    ),
    Disagreement(
        verdict=Verdict.UNOPENED,
        why="The library behind this release's driver refuses it at the time of opening; hvext leaves it the decision.",
        ids=(
            "ssh-host-4096",
            "http-ipv6-junk",
            "http-host-encoded-blank",
            "http-host-utf8",
            "http-host-comma",
        ),
    ),
    Disagreement(
        verdict=Verdict.UNOPENED,
        why="There is no such set of file descriptors; the path is taken like any other.",
        ids=("file-fdset",),
    ),
    Disagreement(
        verdict=Verdict.UNOPENED,
        why="QEMU 7.2 has no libblkio drivers.",
        ids=(
            "json-io-uring",
            "json-nvme-io-uring",
            "json-virtio-blk-vhost-user",
            "json-virtio-blk-vhost-vdpa",
            "json-virtio-blk-vfio-pci",
        ),
        releases=("7.2",),
    ),
    Disagreement(
        verdict=Verdict.STRICTER,
        why="Ceph has no option of that name, so that QEMU's open fails; what writes down the calls takes every name.",
        ids=(
            "rbd-namespace-option",
            "rbd-snapshot-option",
            "rbd-pool-option",
            "rbd-user-option",
            "rbd-cluster-option",
        ),
    ),
    Disagreement(
        verdict=Verdict.WIDER,
        why="An empty part of a query is nothing, as in QEMU 7.2; QEMU 10 drops the parts behind it.",
        ids=("nbd-unix-query-ampersand-before",),
        releases=("10.0",),
    ),
    Disagreement(
        verdict=Verdict.DIFFERENT,
        why="An empty part of a query is nothing, as in QEMU 7.2; QEMU 10 drops the parts behind it.",
        ids=("nfs-query-ampersand",),
        releases=("10.0",),
    ),
)

#: Rows of which libvirt 9.0 makes something else, and why.
LIBVIRT = dict.fromkeys(
    (
        "nbd-uri-query-reconnect-delay",
        "nbd-unix-socket-and-reconnect-delay",
        "json-nbd-reconnect",
        "json-number-text",
    ),
    "libvirt 9.0 does not know an NBD reconnect delay and leaves it out; newer ones (11.3) do",
)
#: Rows that libvirt reads rightly (see the test above), although its schema does not describe them.
LIBVIRT_SCHEMA = {
    **LIBVIRT,
    **dict.fromkeys(("nbd-uri-host-underscore",), "host names have no underscore there"),
    **dict.fromkeys(
        ("nbd-uri-ipv6-zone", "nbd-uri-ipv6-zone-encoded", "nbd-colons-ipv6-zone"), "addresses have no zone there"
    ),
    **dict.fromkeys(
        ("rbd-escaped-snapshot", "rbd-snapshot-slash", "rbd-snapshot-equals", "rbd-snapshot-and-slash"),
        "snapshots have few characters there",
    ),
    **dict.fromkeys(("rbd-conf-none", "rbd-conf-relative"), "configuration files are absolute paths there"),
    **dict.fromkeys(("file-path-newline", "json-odd-names"), "paths have no line ends there"),
}
