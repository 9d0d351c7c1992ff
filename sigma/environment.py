"""What PyTorch reads from the environment when it is loaded; to be imported before it."""

import os

# Threads that wait by spinning for long starve whatever shares the cores with them, each other
# included (ten times slower beside one other job on two cores); this is enough to bridge the gap
# between two operations.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# Scores of a batch against all items are a hundred megabytes: large pages save most of the time
# that the system otherwise spends handing them out page by page (a cross entropy takes half).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
