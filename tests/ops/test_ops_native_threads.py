"""The kernels' threads: all work is done once, and whoever is done with their own part helps the others."""

import ctypes
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from intarsia.ops.native import products
from ops.c_code import loaded

there = pytest.mark.skipif(not products.LIBRARY.there(), reason="needs a C compiler and torch with GNU OpenMP")
SOURCE = """
#include "matrices.h"
#include "threads.h"

/* who[i]: the thread that did i, done[i]: how often it was done; as many threads as `team` come, 0 of them when `late` are
 * done. */
int share(long count, long threads, int team, int helped, int late, int *who, int *done) {
    int finished = 0;
    part *parts = parted(count, threads, 0);
#pragma omp parallel num_threads(team)
    {
        worker own = {.at = omp_get_thread_num()};
        while (own.at == 0 && __atomic_load_n(&finished, __ATOMIC_RELAXED) < late) {}
        for (long i; (i = taken(parts, helped ? threads : 1, &own)) >= 0;) {
            who[i] = omp_get_thread_num();
            __atomic_fetch_add(done + i, 1, __ATOMIC_RELAXED);
            __atomic_fetch_add(&finished, 1, __ATOMIC_RELAXED);
        }
    }
    free(parts);
    return 0;
}
"""


@pytest.fixture(scope="module")
def share(tmp_path_factory):
    call = loaded(SOURCE, tmp_path_factory.mktemp("threads")).share

    def run(count, threads, *, team=None, helped=True, late=0):
        who, done = torch.zeros(2, count, dtype=torch.int32)
        places = (ctypes.c_void_p(x.data_ptr()) for x in (who, done))
        call(ctypes.c_long(count), ctypes.c_long(threads), team or threads, int(helped), late, *places)
        return who.tolist(), done.tolist()

    return run


@there
@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_all_is_done_once(share, count, threads):
    assert share(count, threads)[1] == [1] * count


@there
@pytest.mark.parametrize("team", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_all_is_done_once_by_fewer_threads_than_were_asked_for(share, count, team):
    """As within somebody's parallel region, and by OMP_THREAD_LIMIT and OMP_DYNAMIC."""
    assert share(count, 5, team=team)[1] == [1] * count


@there
def test_nobody_waits_for_a_slow_one(share):
    who, done = share(100, 2, late=99)
    assert done == [1] * 100
    assert who[50:] == [1] * 50
    assert who[:49] == [1] * 49
    assert who[49] == 0  # the last is its own thread's


@there
def test_without_help_each_does_their_own(share):
    who, done = share(99, 2, helped=False, late=50)
    assert (who, done) == ([0] * 49 + [1] * 50, [1] * 99)


@there
@pytest.mark.parametrize("limit", [{"OMP_THREAD_LIMIT": "2"}, {"OMP_MAX_ACTIVE_LEVELS": "0"}], ids=str)
def test_kernels_are_right_where_fewer_threads_come_than_were_asked_for(limit):
    program = """
        import torch
        torch.set_num_threads(5)
        from intarsia.ops.native import activations, attention, bottleneck, norms, products
        print([one.LIBRARY.there() for one in (activations, attention, bottleneck, norms, products)])
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "5", **limit}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == str([True] * 5), done.stderr
