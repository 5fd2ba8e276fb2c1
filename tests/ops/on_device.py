"""Where the kernels' tests run, and what they share: on a GPU where there is one, else through Triton's interpreter."""

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [(torch.float32, 5e-6), *([(torch.bfloat16, 2e-2)] if DEVICE == "cuda" else [])]
both = pytest.mark.parametrize(("dtype", "tol"), DTYPES, ids=[str(dtype) for dtype, _ in DTYPES])
"""Each dtype with its tolerance."""


@pytest.fixture(autouse=True)
def poison():
    """What a kernel leaves unwritten is nan: torch fills fresh memory so in its deterministic mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
