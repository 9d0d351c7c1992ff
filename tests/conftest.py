"""Every test process uses one thread: beside others, a team of threads mostly waits for itself."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
