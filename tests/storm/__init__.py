"""The storm: this project killed, cut, flipped, filled up and lied to, thousands of times.

``python -m tests.storm --minutes 20`` prints one table of what was tried and what went wrong.
"""

import os

# Before PyTorch is loaded: a process with a team of threads cannot fork children that compute.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
# A run asks git for the commit; killed within, git would leave its lock in this checkout.
os.environ["GIT_OPTIONAL_LOCKS"] = "0"
