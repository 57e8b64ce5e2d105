__version__ = "0.1.0"

import os

# Before torch is loaded. On a busy machine its threads would wait for each other at full speed and hold up the work they wait for: a step took
# four times as long with two other jobs beside it. Waiting this long and no longer costs nothing on a quiet one.
if "OMP_WAIT_POLICY" not in os.environ: os.environ.setdefault("GOMP_SPINCOUNT", "10000")
