"""How kernels for CPUs come to be: compiled once, tried once, kept where nobody else writes; else torch computes."""

import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from intarsia.ops.native import activations, bottleneck, compiled, norms, products
from intarsia.ops.native import attention as native

there = pytest.mark.skipif(not native.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")
PROGRAM = """
    import logging
    import torch
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from intarsia import ops
    from intarsia.ops.native import attention as native
    print("there" if native.LIBRARY.there() else "not there")
    q, k, v = torch.randn(3, 1, 2, 5, 32).bfloat16().requires_grad_()
    ops.product_attention(q, k, v, None, 0.3).sum().backward()
"""


def run(**environment):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_without_a_compiler_torch_computes_it_and_a_line_says_so(tmp_path):
    said, log = run(CC="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert said == "not there"
    assert "no C compiler" in log
    said, log = run(CC="false", XDG_CACHE_HOME=str(tmp_path))
    assert said == "not there"
    assert "attention.c cannot be compiled, so torch computes it" in log


@pytest.mark.parametrize("module", [activations, native, bottleneck, norms, products], ids=lambda one: one.LIBRARY.name)
def test_what_can_be_compiled_and_run_here_is_right(module):
    """All other tests of a kernel are skipped where it is not."""
    if module.LIBRARY._loaded() is None:
        pytest.skip("needs a C compiler and torch with GNU OpenMP")
    assert module.LIBRARY.there()


@there
def test_without_a_home_nothing_is_kept_where_others_could_write(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os.path\nos.path.expanduser = lambda path: path\n")
    said, log = run(XDG_CACHE_HOME="", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert said == "not there"
    assert "there is no home folder to keep it in; set XDG_CACHE_HOME" in log


@there
def test_it_is_compiled_once_and_again_where_its_file_is_broken(tmp_path):
    assert run(XDG_CACHE_HOME=str(tmp_path)) == ("there", "")
    (kept,) = (tmp_path / "intarsia" / "native").iterdir()
    first = kept.read_bytes()
    made = kept.stat().st_mtime_ns
    assert run(XDG_CACHE_HOME=str(tmp_path))[0] == "there"
    assert kept.stat().st_mtime_ns == made
    kept.write_bytes(b"")
    assert run(XDG_CACHE_HOME=str(tmp_path))[0] == "there"
    assert len(kept.read_bytes()) == len(first)


@there
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "intarsia").write_text("in the way")
    said, log = run(XDG_CACHE_HOME=str(tmp_path))
    assert said == "there"
    assert "is not kept" in log


@there
def test_two_processes_of_one_number_do_not_write_into_each_others_file(tmp_path, monkeypatch, caplog):
    """Of two machines that share a home: one begins while the other is at it."""
    caplog.set_level("INFO", "intarsia.native")
    right = os.fsync

    def meanwhile(file):
        monkeypatch.setattr(os, "fsync", right)
        compiled.library.__wrapped__("activations")
        right(file)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "fsync", meanwhile)
    assert compiled.library.__wrapped__("activations") is not None
    assert os.fsync is right
    assert caplog.text == ""
    assert len(list((tmp_path / "intarsia" / "native").iterdir())) == 1


@there
def test_several_threads_try_it_once(monkeypatch):
    library, tried = compiled.Library("attention", lambda: tried.append(time.sleep(0.1)) or True), []
    with ThreadPoolExecutor(4) as pool:
        assert all(each.result() for each in [pool.submit(library.there) for _ in range(4)])
    assert len(tried) == 1


@there
def test_what_cannot_be_tried_is_not_used(caplog):
    def out_of_memory():
        raise MemoryError("no room")

    assert not compiled.Library("attention", out_of_memory).there()
    assert "attention.c cannot be tried, so torch computes it: no room" in caplog.text
