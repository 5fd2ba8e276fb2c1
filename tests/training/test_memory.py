"""Steps on a CPU keep the memory of the steps before them; a user's own settings for malloc stay."""

import subprocess
import sys
import textwrap

import pytest

from intarsia import memory

PROGRAM = """
    import resource, sys
    import torch
    from intarsia.memory import give_back, keep_freed
    if "keep" in sys.argv:
        keep_freed()
    def step(width):
        tensors = [torch.ones(width, 1024) for _ in range(8)]
        return sum(float(t[0, 0]) for t in tensors)
    torch.set_num_threads(1)
    for i in range(40):
        if i == 20:
            begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step(1000 + 37 * (i % 20))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


def faults(*arguments):
    """Pages that twenty steps of other sizes had to have cleared."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(memory._set is None, reason="needs glibc's malloc")
def test_steps_of_other_sizes_need_no_new_pages():
    assert faults("keep") < 0.1 * faults()


@pytest.mark.parametrize(
    ("name", "value", "set_"),
    [
        ("PATH", "/bin", True),
        ("MALLOC_TRIM_THRESHOLD_", "1000", False),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000", False),
        ("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX512F", True),
    ],
)
def test_a_users_own_settings_stay(monkeypatch, name, value, set_):
    for variable in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    calls = {}
    monkeypatch.setattr(memory, "_set", lambda option, value: calls.update({option: value}))
    memory.keep_freed()
    assert calls == (memory.KEPT if set_ else {})
