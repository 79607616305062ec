"""One thread everywhere: two OpenMP threads on a busy two-core machine are many times slower than one."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["KEDRO_DISABLE_TELEMETRY"] = "1"

import torch  # noqa: E402

torch.set_num_threads(1)
