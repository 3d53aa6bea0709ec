"""The blocks of pages that need guests, storage servers, or time: what they show is what happens."""

from __future__ import annotations

import pytest

from hvext.host.machine import GuestImage
from tests.pages.run import run_session
from tests.pages.sessions import Session
from tests.pages.table import NIGHTLY, WITH_CEPH, WITH_ISCSI
from tests.servers.ceph import ceph_cluster
from tests.servers.iscsi import USER, iscsi_target

pytestmark = [pytest.mark.nightly, pytest.mark.vm, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("session", NIGHTLY, ids=lambda session: session.name)
def test_the_blocks_of_a_page_do_what_it_says(session: Session, guest_image: GuestImage) -> None:
    assert guest_image.kernel.exists()
    run_session(session)


@pytest.mark.parametrize("session", WITH_CEPH, ids=lambda session: session.name)
def test_a_ceph_volume_lives_as_the_pages_say(session: Session, guest_image: GuestImage) -> None:
    assert guest_image.kernel.exists()
    with ceph_cluster() as cluster:
        run_session(session, environment={"CLUSTER": str(cluster.folder), "CONF": str(cluster.conf)})


@pytest.mark.parametrize("session", WITH_ISCSI, ids=lambda session: session.name)
def test_a_password_is_handed_over_as_the_pages_say_and_shown_nowhere(
    session: Session, guest_image: GuestImage
) -> None:
    assert guest_image.kernel.exists()
    with iscsi_target() as target:
        target.create("vol1", 16 << 20)
        printed = run_session(
            session,
            environment={"TARGET": target.uri("vol1").replace("iscsi://", f"iscsi://{USER}@")},
            files={"password": f"{target.password}\n", "uri": f"{target.uri_with_password('vol1')}\n"},
        )
        assert target.password not in printed
