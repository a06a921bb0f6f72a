"""Of all tests: what Hypothesis tries may take as long as it takes (by default an example of more than 0.2 s fails, on a busy machine any), and
each test starts with the same random numbers, whichever ran before it in its process, and numbers that commands keep for later (AHA_CACHE)
are kept for this run of the tests alone: those of an earlier version would hide what this one computes, and nothing is left at home."""

import random
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "any speed", settings.default, deadline=None, suppress_health_check=[*settings.default.suppress_health_check, HealthCheck.too_slow]
)
settings.load_profile("any speed")


@pytest.fixture(autouse=True)
def same_random_numbers():
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:  # many tests have no use for it; where a test is the first to import it, it is as new
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AHA_CACHE", str(tmp_path_factory.mktemp("aha-cache")))
        yield
