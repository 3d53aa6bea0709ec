"""Real storage servers for tests: one module each, started in a moment and gone with the block.

Every server is a context manager. It runs in a temporary folder with a short path, on unix sockets or on loopback at a
port that was free, with secrets that are new each time; it needs no service manager, changes nothing outside of its
folder, and ends only what it started. A program that is missing, or a right that this machine does not give, skips the
test by name (with HVEXT_REQUIRE_ALL=1 it fails).

    with nbd_server(tcp=True) as server:
        server.create("vol", 64 * MIB)
        ...                                        # a guest writes through server.uri("vol")
        assert server.read("vol", 0, 512) == ...   # what the storage holds, asked behind QEMU's back
        server.kill()                              # the server is gone; server.restart() brings it back

What all have: ``uri(name)``, the text a provider would print; ``create(name, size_bytes)``, ``read(name, offset,
length)`` and ``write(name, offset, data)`` on the server's side; ``kill()`` and ``freeze()``/``thaw()``. All but Ceph
have ``restart()``.

| module | starts with | ready after | beyond that |
|---|---|---|---|
| nbd | ``nbd_server(tcp=, certificates=, psk=)`` | 0.01 s | ``socket`` or ``host`` and ``port``; ``certificates``; ``key``, the folder ``psk`` and ``PSK_USER`` |
| ceph | ``ceph_cluster()`` | 2 s | ``POOL``, ``NAMESPACE``, ``USER``; ``key``, ``keyring``, ``conf``, ``host`` and ``port``; ``namespace=`` everywhere; ``uri_with_key``; ``resize``; ``rbd(…)``; ``stop_osd``, ``start_osd`` |
| iscsi | ``iscsi_target()`` | 0.02 s | ``TARGET``, ``USER``, ``password``, ``portal``, ``units``; ``uri_with_password`` |
| ssh | ``ssh_server()`` | 0.1 s | ``env`` for QEMU, with the agent; ``user``, ``md5``, ``sha256``; ``uri(…, check=)`` |
| https | ``web_server(certificates)`` | 0.03 s | ``uri(…, Place.OPEN or PASSWORD or COOKIE, tls=)``, ``uri_with_password``; ``USER``, ``password``, ``cookie``; ``prefix`` for a QEMU that trusts it; read-only for QEMU |
| vhost_user | ``vhost_user_server()`` | 0.01 s | ``socket(name)``; ``nbd_uri``, the same node over NBD |
| nfs | ``nfs_server()`` | 0.1 s | ``prefix`` for a QEMU in its network; needs root |
| gluster | ``gluster_server()`` | 0.8 s | ``VOLUME``, ``host``; closing a node blocks QEMU up to 10 s, killing QEMU does not; needs root |

``prefix`` is an argv for `MachineOptions.prefix`, ``env`` for its ``env``. ``server.service`` (Ceph: ``mon`` and ``osd``)
is the program itself: ``alive``, ``pid``, ``stop()``.

``two_ways.two_ways(size)`` is one volume with an NBD server and a block device, either of which can be made to die, and
a fence for the server (0.1 s; needs root).

``certificates.certificates()`` makes certificates for a server and its clients (0.1 s; share it). ``program`` starts,
finds ready, freezes and ends one program; ``server`` is what the servers have in common; ``namespaces`` is for those
that insist on places of their own.
"""  # noqa: E501
