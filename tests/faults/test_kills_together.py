"""Two processes are killed together, again and again: the end is that of a run that was not."""
import pytest

from .kills import kill_chain
from .plans import PLANS

pytestmark = pytest.mark.faults
TOGETHER = [name for name, plan in PLANS.items() if plan.ranks > 1]


@pytest.mark.parametrize("chain", range(5))
@pytest.mark.parametrize("name", TOGETHER)
def test_processes_end_as_if_they_had_not_been_killed(name, chain, bench, inject, rng, tmp_path):
    kill_chain(bench, PLANS[name], tmp_path, rng, 6, inject, name)
