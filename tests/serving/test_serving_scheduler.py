"""The scheduler: fair between tasks, within its budget, in order, nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from intarsia.serving.scheduler import QUANTUM, Item, Scheduler

rows = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 600)), max_size=60)


def filled(work, **more):
    scheduler = Scheduler(**{"tokens": 1000, "rows": 8, **more})
    items = [Item(task, tokens, arrived=float(n), deadline=1e9, payload=n) for n, (task, tokens) in enumerate(work)]
    for item in items:
        scheduler.put(item)
    return scheduler, items


def drained(scheduler):
    batches = []
    while batch := scheduler.take():
        batches.append(batch)
    return batches


@given(rows)
def test_every_row_leaves_once_and_in_its_tasks_order(work):
    scheduler, items = filled(work)
    out = [item for batch in drained(scheduler) for item in batch]
    assert sorted(item.payload for item in out) == list(range(len(items)))
    for task in "abcde":
        own = [item.payload for item in out if item.task == task]
        assert own == sorted(own)
    assert (len(scheduler), scheduler.waiting_tokens) == (0, 0)


@given(rows, st.integers(100, 2000), st.integers(1, 16))
def test_a_batch_keeps_to_its_budget_unless_it_is_one_long_row(work, tokens, most):
    scheduler, _ = filled(work, tokens=tokens, rows=most)
    for batch in drained(scheduler):
        assert len(batch) <= most
        assert len(batch) == 1 or len(batch) * max(item.tokens for item in batch) <= tokens


@given(st.integers(1, 400), st.integers(1, 200))
def test_a_task_with_one_row_is_not_held_up_by_one_with_many(many, tokens):
    scheduler, _ = filled([("big", tokens)] * many + [("small", QUANTUM)], tokens=10 * 200, rows=8)
    before = 0
    for batch in drained(scheduler):
        if any(item.task == "small" for item in batch):
            break
        before += sum(item.tokens for item in batch)
    # At most the quantum of one turn, and the row that was over it, came first.
    assert before <= QUANTUM + tokens


def test_tasks_that_always_wait_get_equal_shares():
    scheduler, _ = filled([(task, 50) for task in "abcd" for _ in range(100)], tokens=400, rows=8)
    sent = dict.fromkeys("abcd", 0)
    for _ in range(30):
        for item in scheduler.take():
            sent[item.task] += item.tokens
    assert max(sent.values()) - min(sent.values()) <= 2 * QUANTUM


def test_cancelled_rows_vanish_and_late_ones_are_returned():
    scheduler, items = filled([("a", 5), ("a", 5), ("b", 5), ("b", 5)])
    items[0].cancelled = True
    items[3].deadline = 7.0
    assert scheduler.sweep(now=8.0) == [items[3]]
    assert [item.payload for batch in drained(scheduler) for item in batch] == [1, 2]


def test_the_oldest_row_is_known_and_everything_can_be_taken_out():
    scheduler, items = filled([("a", 5), ("b", 5)])
    assert scheduler.oldest() == 0.0
    assert scheduler.empty() == items
    assert scheduler.oldest() is None
    assert not scheduler.take()
