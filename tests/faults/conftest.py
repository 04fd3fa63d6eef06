import random
from collections import Counter

import pytest

from tests.integration.conftest import cfg, forks, images, pretrained_run, train  # noqa: F401

from .plans import Bench

FAULT = "fault"


@pytest.fixture(scope="session")
def bench(forks, images, pretrained_run, tmp_path_factory):  # noqa: F811
    """Runs plans; see plans.Bench."""
    return Bench(forks, images, pretrained_run / "encoder.pth", tmp_path_factory.mktemp)


@pytest.fixture(autouse=True)
def nothing_left(request):
    """Ends what a test has left running, stopped or hanging."""
    yield
    if "bench" in request.fixturenames:
        request.getfixturevalue("bench").clear()


@pytest.fixture
def inject(request):
    """inject(kind, times=1): note that a fault was injected. It counts as recovered if the test passes, else as lost."""
    def note(kind, times=1):
        request.node.user_properties.append((FAULT, (kind, times)))
    return note


@pytest.fixture
def rng(request):
    """Random numbers that are those of the test, whatever ran before it."""
    return random.Random(request.node.nodeid)


def pytest_terminal_summary(terminalreporter):
    """Print how many faults were injected, and what became of them."""
    injected, lost = Counter(), Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties if report.when == "call" else ():
                if name == FAULT:
                    kind, times = value
                    injected[kind] += times
                    lost[kind] += times if outcome == "failed" else 0
    if injected:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'kind':<56}{'injected':>10}{'recovered':>11}{'lost':>7}")
        for kind in [*sorted(injected), "all"]:
            many, few = (sum(count.values()) if kind == "all" else count[kind] for count in (injected, lost))
            terminalreporter.write_line(f"{kind:<56}{many:>10}{many - few:>11}{few:>7}")
