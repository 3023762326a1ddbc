"""What every test shares: one thread per process, quiet libraries, small checkpoints."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
