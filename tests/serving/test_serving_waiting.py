"""Places in the queue: texts leave rows theirs, a task leaves another its first one, who is refused is told when to come again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.serving.limits import Limits
from intarsia.serving.requests import Busy
from intarsia.serving.scheduler import Item
from intarsia.serving.waiting import Waiting


def read(queue, task, *, arrived=0.0, deadline=1e9):
    queue.enter(task, arrived)
    item = Item(task, 5, arrived, deadline)
    queue.put(item)
    return item


def test_texts_that_fill_their_places_leave_rows_theirs():
    waiting = Waiting(Limits(queue=3))
    for _ in range(3):
        read(waiting.texts, "long")
    with pytest.raises(Busy, match="3 requests wait already"):
        waiting.texts.enter("long", 1.0)
    for _ in range(3):
        read(waiting.rows, "long")
    assert len(waiting) == 6


def test_a_task_that_has_no_place_gets_a_spare_one_and_no_second():
    rows = Waiting(Limits(queue=8)).rows
    for _ in range(8):
        read(rows, "loud")
    rows.enter("quiet", 0.0)  # not read yet
    for task in ("loud", "quiet"):
        with pytest.raises(Busy):
            rows.enter(task, 0.0)
    rows.enter("another", 0.0)
    with pytest.raises(Busy, match="10 requests wait already"):
        rows.enter("a third", 0.0)
    rows.leave("quiet")
    read(rows, "quiet")


def test_who_is_refused_may_come_again_when_those_before_are_gone():
    rows = Waiting(Limits(queue=2)).rows
    read(rows, "a", arrived=10.0)
    read(rows, "a", arrived=12.0)
    for now, seconds in ((10.2, 1.0), (17.5, 7.5)):
        with pytest.raises(Busy) as caught:
            rows.enter("a", now)
        assert caught.value.retry_after == seconds


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["enter", "read", "lose", "take", "sweep"])), max_size=80
    )
)
def test_places_are_given_back_however_requests_end(steps):
    rows, reading, scheduled = Waiting(Limits(queue=4, batch_rows=2)).rows, [], 0
    for task, what in steps:
        if what == "enter":
            has = task in reading or rows.scheduler.has(task)
            full = len(reading) + scheduled >= (4 if has else 5)
            try:
                rows.enter(task, 0.0)
                assert not full
                reading.append(task)
            except Busy:
                assert full
        elif what == "read" and task in reading:
            reading.remove(task)
            rows.put(Item(task, 5, 0.0, 1e9))
            scheduled += 1
        elif what == "lose" and task in reading:
            reading.remove(task)
            rows.leave(task)
        elif what == "take":
            scheduled -= len(rows.scheduler.take())
        elif what == "sweep":
            rows.scheduler.sweep(1e10)
            scheduled = 0
        assert len(rows) == len(reading) + scheduled <= 5
