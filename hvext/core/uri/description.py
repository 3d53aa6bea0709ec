"""``json:{…}``: a location written as the options of one block driver.

Only drivers of the list in ``schemes.DRIVERS`` are taken, never a format layer, a backing file or anything else that
QEMU would go on to open. Nested objects may be written with dotted keys, as QEMU takes them.
Source: QEMU, block.c, ``parse_json_protocol``; util/block-qdict.c, ``qdict_crumple``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from hvext.core.text import quoted
from hvext.core.uri.fields import Fields
from hvext.errors import LocationError

#: Format drivers and filters: what they are over would be opened as well.
_LAYERS = frozenset(
    "raw qcow2 qcow qed vdi vhdx vmdk vpc parallels bochs cloop dmg luks vvfat blkdebug blklogwrites blkreplay "
    "blkverify copy-before-write copy-on-read compress preallocate quorum replication snapshot-access throttle "
    "null-co null-aio".split()
)


def read(text: str, *, reported: bool = False) -> tuple[str, Fields]:
    """Return driver and options of a description, the text behind ``json:``; raises LocationError.

    ``reported`` is for what QEMU says of an open node: the objects that it names there are left out.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_twins)
    except LocationError:
        raise
    except (ValueError, RecursionError) as error:
        # Not quoted: what cannot be read can hold anything, a password too.
        raise LocationError(f"json: the text behind it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise LocationError("json: must be an object", hint='write json:{"driver":"nbd",…}')
    nested = _nested(value)
    if reported:
        nested = {name: item for name, item in nested.items() if not _names_object(name)}
    fields = Fields(nested)
    driver = fields.needed("driver")
    if driver in _LAYERS:
        raise LocationError(
            f"json: driver {quoted(driver)} is no storage protocol",
            hint="formats and filters are not taken: volumes are raw, and hvext makes the layers above them itself",
        )
    return driver, fields


def write(driver: str, fields: Mapping[str, object]) -> str:
    """Return the ``json:`` location that ``read`` takes apart again."""
    return "json:" + json.dumps({"driver": driver, **fields}, separators=(",", ":"))


def _names_object(name: str) -> bool:
    # A TLS host name goes with the credentials.
    return name in ("tls-creds", "tls-hostname") or name.endswith("-secret")


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _value in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise LocationError(f"json: {quoted(twin)} is given twice")
    return values


def _nested(values: Mapping[str, object]) -> dict[str, object]:
    """Return an object with its dotted keys turned into objects in it."""
    result: dict[str, object] = {}
    for key, value in values.items():
        *folders, name = key.split(".")
        place = result
        for folder in folders:
            inner = place.setdefault(folder, {})
            if not isinstance(inner, dict):
                raise LocationError(f"json: {quoted(key)} is given twice")
            place = inner
        new = _nested(value) if isinstance(value, Mapping) else value
        old = place.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and not old.keys() & new.keys():
            old.update(new)
        elif name in place:
            raise LocationError(f"json: {quoted(key)} is given twice")
        else:
            place[name] = new
    return result
