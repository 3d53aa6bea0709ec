"""Where a disk of a libvirt domain is: the inverse of ``Location.libvirt_source``, without secrets.

Source: libvirt, "Domain XML format", section "Hard drives, floppy disks, CDROMs".
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from hvext.core.uri import Location
from hvext.core.uri.file import FileLocation, Opened
from hvext.errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: What libvirt leaves as it is in the path of a URL.
_URL_SAFE = "/;@&=+$,-_.!~*'()"


def source_location(disk: Element) -> Location | None:
    """Return where a ``<disk>`` is; None for what hvext would not have written."""
    source = disk.find("source")
    if source is None:
        return None
    try:
        if disk.get("type") == "network":
            read = _PROTOCOLS.get(source.get("protocol", ""))
            return read(source) if read else None
        return _LOCAL[disk.get("type", "")](source)
    except (InputError, KeyError, ValueError):
        return None


def source_words(disk: Element) -> str:
    """Return where a ``<disk>`` is, for people: its path or URI, or what libvirt says; empty when it is nowhere."""
    location = source_location(disk)
    if location is not None:
        return location.words
    source = disk.find("source")
    if source is None:
        return ""
    path = next((source.attrib[name] for name in ("file", "dev", "dir", "path") if name in source.attrib), "")
    return path or _named(source) or disk.get("type", "")


def _named(source: Element) -> str:
    """Return what a source of libvirt's is that has no path: "sheepdog v on h:7000", "volume v of pool p"."""
    if "pool" in source.attrib:
        return f"volume {source.get('volume', '')} of pool {source.attrib['pool']}"
    if "protocol" not in source.attrib:
        return ""
    name = f" {source.attrib['name']}" if source.get("name") else ""
    hosts = [host.get("socket") or _server(host) for host in source.findall("host")]
    where = f" on {', '.join(hosts)}" if any(hosts) else ""
    return f"{source.attrib['protocol']}{name}{where}"


def _server(host: Element) -> str:
    return host.get("name", "") + (f":{host.attrib['port']}" if "port" in host.attrib else "")


def _file(source: Element) -> Location:
    return FileLocation(path=source.attrib["file"], opened=Opened.FILE)


def _block(source: Element) -> Location:
    return FileLocation(path=source.attrib["dev"], opened=Opened.HOST_DEVICE)


def _vhost_user(source: Element) -> Location:
    from hvext.core.uri.vhost_user import VhostUserLocation

    return VhostUserLocation(path=source.attrib["path"])


def _nvme(source: Element) -> Location | None:
    from hvext.core.uri.nvme import NvmeLocation

    address = source.find("address")
    if address is None:
        return None
    domain, bus, slot, function = (int(address.attrib[name], 16) for name in ("domain", "bus", "slot", "function"))
    device = f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
    return NvmeLocation(device=device, namespace=int(source.attrib["namespace"]))


def _nbd(source: Element) -> Location:
    from hvext.core.uri.nbd import NbdLocation, TcpServer, UnixServer
    from hvext.core.uri.nbd_server import DEFAULT_PORT
    from hvext.core.uri.nbd_tls import Certificates

    host, reconnect = _host(source), source.find("reconnect")
    server = (
        UnixServer(path=host.attrib["socket"])
        if host.get("transport") == "unix"
        else TcpServer(host=host.attrib["name"], port=int(host.get("port", DEFAULT_PORT)))
    )
    tls = Certificates(hostname=source.get("tlsHostname", "")) if source.get("tls") == "yes" else None
    delay = int(reconnect.attrib["delay"]) if reconnect is not None else 0
    return NbdLocation(server=server, export=source.get("name", ""), tls=tls, reconnect_delay_s=delay)


def _rbd(source: Element) -> Location:
    from hvext.core.uri.ceph import DEFAULT_USER, Monitor
    from hvext.core.uri.rbd import RbdLocation

    pool, _slash, image = source.attrib["name"].partition("/")
    user = _user(source)
    snapshot, config = source.find("snapshot"), source.find("config")
    return RbdLocation(
        pool=pool,
        image=image,
        snapshot=snapshot.attrib["name"] if snapshot is not None else "",
        conf=config.attrib["file"] if config is not None else "",
        user="" if user == DEFAULT_USER else user,
        monitors=tuple(
            Monitor(host=host.attrib["name"], port=int(host.attrib["port"])) for host in source.findall("host")
        ),
    )


def _iscsi(source: Element) -> Location:
    from hvext.core.uri.iscsi import DEFAULT_PORT, IscsiLocation

    target, _slash, lun = source.attrib["name"].rpartition("/")
    host, initiator = _host(source), source.find("initiator/iqn")
    return IscsiLocation(
        host=host.attrib["name"],
        port=int(host.get("port", DEFAULT_PORT)),
        target=target,
        lun=int(lun),
        user=_user(source),
        initiator_name=initiator.attrib["name"] if initiator is not None else "",
    )


def _gluster(source: Element) -> Location:
    from hvext.core.uri.gluster import DEFAULT_PORT, GlusterHost, GlusterLocation, GlusterSocket

    volume, _slash, path = source.attrib["name"].partition("/")
    servers = tuple(
        GlusterSocket(path=host.attrib["socket"])
        if host.get("transport") == "unix"
        else GlusterHost(host=host.attrib["name"], port=int(host.get("port", DEFAULT_PORT)))
        for host in source.findall("host")
    )
    return GlusterLocation(volume=volume, path=path, servers=servers)


def _nfs(source: Element) -> Location:
    from hvext.core.uri.nfs import NfsLocation

    identity = source.find("identity")
    ids = {name: int(value) for name, value in identity.attrib.items()} if identity is not None else {}
    return NfsLocation(
        host=_host(source).attrib["name"], path=source.attrib["name"], user=ids.get("user"), group=ids.get("group")
    )


def _curl(source: Element) -> Location:
    from hvext.core.uri.curl import CurlLocation

    scheme, host = source.attrib["protocol"], _host(source)
    name = host.attrib["name"]
    place = (f"[{name}]" if ":" in name else name) + (f":{host.attrib['port']}" if "port" in host.attrib else "")
    query = f"?{source.attrib['query']}" if "query" in source.attrib else ""
    path = quote(source.attrib["name"], safe=_URL_SAFE)
    verify, readahead, timeout = source.find("ssl"), source.find("readahead"), source.find("timeout")
    return CurlLocation(
        url=f"{scheme}://{place}{path if path.startswith('/') else '/' + path}{query}",
        username=_user(source),
        sslverify=verify.get("verify") == "yes" if verify is not None else None,
        readahead_bytes=int(readahead.attrib["size"]) if readahead is not None else None,
        timeout_s=int(timeout.attrib["seconds"]) if timeout is not None else None,
    )


def _host(source: Element) -> Element:
    host = source.find("host")
    if host is None:
        raise ValueError("no host")
    return host


def _user(source: Element) -> str:
    auth = source.find("auth")
    return "" if auth is None else auth.attrib["username"]


_LOCAL: dict[str, Callable[[Element], Location | None]] = {
    "file": _file,
    "block": _block,
    "vhostuser": _vhost_user,
    "nvme": _nvme,
}
_PROTOCOLS: dict[str, Callable[[Element], Location | None]] = {
    "nbd": _nbd,
    "rbd": _rbd,
    "iscsi": _iscsi,
    "gluster": _gluster,
    "nfs": _nfs,
    **dict.fromkeys(("http", "https", "ftp", "ftps"), _curl),
}
