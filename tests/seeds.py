"""What the tests that draw numbers or learn add to their seeds: ``FACES_TEST_SEED=1 pytest`` tries others."""

import os

SEED = int(os.environ.get("FACES_TEST_SEED", "0"))
