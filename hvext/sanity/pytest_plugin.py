"""A pytest plug-in: each check of a provider becomes one test of its author's own suite.

``pytest --extstorage-provider NAME`` adds them to whatever is collected; without the option it does nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hvext.sanity.check import Check, Outcome
    from hvext.sanity.kit import Kit


class CheckFailed(Exception):
    """A check found a fault; the text says what to change."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; none of them changes a run that does not name a provider."""
    group = parser.getgroup("extstorage", "conformance of a Ganeti ExtStorage provider (hvext sanity)")
    group.addoption("--extstorage-provider", metavar="NAME", help="the provider; each check is a test")
    group.addoption("--extstorage-search-path", metavar="DIR:DIR…", help="where it is (default: Ganeti's path)")
    group.addoption(
        "--extstorage-parameter", metavar="NAME=VALUE", action="append", default=[], help="provider parameter"
    )
    group.addoption(
        "--extstorage-place", metavar="NAME=VALUE,…", action="append", default=[], help="see hvext sanity --place"
    )
    group.addoption("--extstorage-level", choices=("contract", "data", "stress"), default="data")
    group.addoption("--extstorage-size", metavar="MIB", type=int, default=32, help="size of the volumes")


class SanityItem(pytest.Item):
    """One check, as a test."""

    kit: Kit
    check: Check
    outcome: Outcome

    def runtest(self) -> None:
        """Run the check, and those it needs that did not run yet."""
        from hvext.sanity.check import Verdict
        from hvext.sanity.report import failure

        outcome = self.kit.outcome(self.check)
        if outcome.verdict is Verdict.FAILED:
            raise CheckFailed(failure(outcome))
        if outcome.verdict is Verdict.SKIPPED:
            pytest.skip(outcome.words)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return what to change, without a traceback into the kit."""
        if isinstance(excinfo.value, CheckFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """Return what the test is, in words: it stands in no file."""
        return "extstorage", None, f"extstorage {self.name}"


class Sanity:
    """The tests of one provider, and its volumes, which are removed when the session ends."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the checks behind all other tests, in their order; first of all hooks, so that -k chooses among them."""
        for check in self._kit.checks:
            name = f"{self._kit.trial.name}[{check.name}]"
            item = SanityItem.from_parent(session, name=name, nodeid=f"extstorage::{name}")
            item.kit = self._kit
            item.check = check
            items.append(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        """Remove what is left of the volumes."""
        with self._kit:
            yield

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell what was seen besides, and what is left on the host."""
        for note in self._kit.trial.notes:
            terminalreporter.line(f"extstorage: {note}")
        for name in self._kit.trial.remaining:
            terminalreporter.line(f"extstorage: LEFT BEHIND, to be removed by hand: the volume {name}")


def pytest_configure(config: pytest.Config) -> None:
    """Have the checks of the provider that is named collected."""
    name = config.getoption("--extstorage-provider")
    if not name:
        return
    from hvext.errors import HvextError
    from hvext.host.provider import DEFAULT_SEARCH_PATH, ProviderHost
    from hvext.sanity.check import Level
    from hvext.sanity.kit import Kit
    from hvext.sanity.trial import Settings

    path = config.getoption("--extstorage-search-path")
    try:
        kit = Kit(
            ProviderHost(search_path=path.split(":") if path else DEFAULT_SEARCH_PATH),
            name,
            Settings(
                parameters=_pairs(config.getoption("--extstorage-parameter")),
                places=tuple(_pairs(text.split(",")) for text in config.getoption("--extstorage-place")),
                size_mib=config.getoption("--extstorage-size"),
            ),
            level=Level(config.getoption("--extstorage-level")),
        )
    except HvextError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(Sanity(kit), "hvext-sanity-checks")


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [name for name, equals, _value in pairs if not (name and equals)]:
        raise pytest.UsageError(f"a parameter is NAME=VALUE; got {wrong[0]!r}")
    return {name: value for name, _equals, value in pairs}
