"""What a provider's ``attach`` script prints.

Line 1 is the path of the block device, or empty. Every further line is ``<hypervisor>:<uri>``.

Source: Ganeti, doc/design-shared-storage.rst, "ExtStorage Interface support for userspace access".
"""

from __future__ import annotations

from hvext.core.file_kind import FileKind
from hvext.core.text import quoted
from hvext.core.uri import shown
from hvext.core.uri.mask import masked
from hvext.core.uri.schemes import is_known_scheme
from hvext.core.value import field, value_object
from hvext.errors import AnswerError, InputError

MAX_BYTES = 64 * 1024
MAX_LINE_BYTES = 4096
_BLANKS = " \t"
#: Ganeti's names of hypervisors.
_HYPERVISORS = frozenset({"kvm", "xen-pvm", "xen-hvm", "fake", "chroot", "lxc"})
_EXPECTED = "line 1 must be the absolute path of a block device, or empty"
_STDERR = "print everything else to stderr"


@value_object
class HypervisorUri:
    """One further line of the answer: ``hypervisor`` in lower case, ``uri`` as printed, ``line`` counted from 1.

    The URI may hold secrets; ``shown`` is without them.
    """

    hypervisor: str
    uri: str = field(repr=False)
    line: int

    @property
    def shown(self) -> str:
        """The URI without its secrets; what is taken for the hypervisor may be its scheme."""
        if is_known_scheme(self.hypervisor):
            return shown(f"{self.hypervisor}:{self.uri}").removeprefix(f"{self.hypervisor}:")
        return shown(self.uri)


@value_object
class Attachment:
    """A usable answer: a block path, URIs, or both, and what a provider's author should mend."""

    block_path: str | None
    uris: tuple[HypervisorUri, ...] = ()
    warnings: tuple[str, ...] = ()

    def uris_for(self, hypervisor: str) -> tuple[str, ...]:
        """Return the URIs for one hypervisor, the preferred one first."""
        wanted = hypervisor.lower()
        return tuple(line.uri for line in self.uris if line.hypervisor == wanted)


def parse_answer(stdout: bytes | str) -> Attachment:
    """Return what ``attach`` offers; ``stdout`` is what it printed, as bytes or as text.

    Whether the path is a block device is not looked at here: see ``check_block_path``. Raises AnswerError, which
    names the line, for an answer that offers nothing or cannot be trusted, and
    InputError for what is neither bytes nor text.
    """
    if isinstance(stdout, str):
        # What was no text when it was read is refused in its line, as in bytes.
        stdout = stdout.encode(errors="surrogatepass")
    if not isinstance(stdout, bytes):
        raise InputError(f"an answer of attach must be bytes or text, not {type(stdout).__name__}")
    lines = _decoded_lines(stdout)
    warnings: list[str] = []
    path = _trimmed(lines[0], 1, "the block device path", warnings)
    if path and not path.startswith("/"):
        raise _first_line_error(path, lines)
    uris: list[HypervisorUri] = []
    for number, text in enumerate(lines[1:], start=2):
        line = _parse_line(text, number, warnings)
        if line is not None:
            uris.append(line)
    if not path and not uris:
        raise AnswerError(
            "attach printed neither a block device nor a URI",
            hint="; ".join((*warnings, _EXPECTED, "further lines must be <hypervisor>:<uri>")),
        )
    return Attachment(block_path=path or None, uris=tuple(uris), warnings=tuple(warnings))


def check_block_path(path: str, kind: FileKind) -> None:
    """Raise AnswerError unless ``kind``, what was found at the block path, is a block device."""
    if kind is FileKind.BLOCK_DEVICE:
        return
    found = "does not exist" if kind is FileKind.MISSING else f"is {kind.value}"
    raise AnswerError(
        f"attach printed {quoted(path)} as the block device, but it {found}",
        hint="attach must return only once the device node is there; leave line 1 empty where there is none",
    )


def _decoded_lines(stdout: bytes) -> list[str]:
    if len(stdout) > MAX_BYTES:
        raise AnswerError(f"attach printed a longer answer than is taken: at most {MAX_BYTES} bytes", hint=_STDERR)
    decoded = []
    start = 0
    lines = stdout.splitlines(keepends=True)
    if not lines or lines[-1].endswith((b"\r", b"\n")):
        lines.append(b"")
    for number, whole in enumerate(lines, start=1):
        line = whole.rstrip(b"\r\n")
        if b"\0" in line:
            raise AnswerError(
                f"attach printed a NUL byte in line {number}, at byte {stdout.index(0, start)} of its answer"
            )
        if len(line) > MAX_LINE_BYTES:
            raise AnswerError(
                f"line {number} of attach's answer has {len(line)} bytes; a line has at most {MAX_LINE_BYTES}"
            )
        try:
            decoded.append(line.decode())
        except UnicodeDecodeError as error:
            raise AnswerError(
                f"attach printed text that is not UTF-8 in line {number}, at byte {start + error.start} of its answer"
            ) from error
        start += len(whole)
    return decoded


def _trimmed(text: str, number: int, what: str, warnings: list[str]) -> str:
    trimmed = text.strip(_BLANKS)
    if trimmed != text:
        warnings.append(f"line {number}: blanks around {what} were removed; Ganeti would keep them: print none")
    return trimmed


def _first_line_error(first: str, lines: list[str]) -> AnswerError:
    message = f"line 1 of attach's answer is {quoted(masked(first))}; {_EXPECTED}"
    prefix = first.partition(":")[0].strip(_BLANKS).lower()
    if prefix in _HYPERVISORS or is_known_scheme(prefix):
        kvm = "" if prefix in _HYPERVISORS else f", and the URI in a further line as kvm:{masked(first)}"
        return AnswerError(message, hint=f"a provider without a block device prints an empty first line{kvm}")
    for number, text in enumerate(lines[1:], start=2):
        if text.strip(_BLANKS).startswith("/"):
            return AnswerError(message, hint=f"line {number} looks like the path: print it first, and {_STDERR}")
    if ":" not in first and "/" in first and " " not in first:
        return AnswerError(message, hint="the path must be absolute")
    return AnswerError(
        message, hint=f"{_STDERR}; if this is an error message, the script must also end with a status that is not 0"
    )


def _parse_line(text: str, number: int, warnings: list[str]) -> HypervisorUri | None:
    line = text.strip(_BLANKS)
    if not line:
        return None
    prefix, colon, rest = line.partition(":")
    if not colon:
        warnings.append(f"line {number}: {quoted(masked(line))} is not <hypervisor>:<uri> and was ignored; {_STDERR}")
        return None
    hypervisor, uri = prefix.strip(_BLANKS).lower(), rest.strip(_BLANKS)
    if (prefix, rest) != (prefix.strip(_BLANKS), uri) or line != text:
        warnings.append(f"line {number}: blanks around the hypervisor or the URI were removed; print none")
    if not uri:
        warnings.append(f"line {number}: {quoted(masked(line))} has no URI behind the prefix and counts as absent")
        return None
    if hypervisor not in _HYPERVISORS and is_known_scheme(hypervisor):
        warnings.append(
            f"line {number}: {quoted(masked(line))} is read as the URI of a hypervisor called {hypervisor!r}; "
            f"if it is meant for KVM, the prefix is missing: kvm:{masked(line)}"
        )
    return HypervisorUri(hypervisor=hypervisor, uri=uri, line=number)
