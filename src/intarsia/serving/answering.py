"""What the engine's thread does with rows: classify a batch, write texts on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from intarsia.bank import TaskBank
from intarsia.errors import ConfigError, IntarsiaError
from intarsia.heads import Decoding
from intarsia.rows import answer_row, join_rows
from intarsia.serving.counts import Counts
from intarsia.serving.decoder import Decoder, Emitted, Writing
from intarsia.serving.jobs import Job
from intarsia.serving.limits import Limits
from intarsia.serving.logs import note_bug
from intarsia.serving.requests import (
    Answer,
    BadRequest,
    EngineFailure,
    Event,
    Failed,
    Finished,
    Generate,
    Piece,
)
from intarsia.serving.sampling import COLDEST
from intarsia.serving.text import TextStream
from intarsia.staged import Returning

TOGETHER = 16
"""Texts of an encoder-decoder that are written in one batch."""


class Answering:
    """Jobs to events. Belongs to the engine's thread, but for `check_writes`."""

    def __init__(self, bank: TaskBank, limits: Limits, finish: Callable[[Job, Event | None], None]) -> None:
        self.bank, self.finish = bank, finish
        self.backbone = bank.backbone
        self._writing: dict[Writing, Job] = {}
        self._asked: list[tuple[list[Job], Returning]] = []
        """The newest batch of rows, while a GPU works on it."""
        self._writes = self.backbone.model.get_output_embeddings() is not None and self.backbone.kind != "encoder"
        # Layers that keep other states than keys and values: texts are written in whole batches, as an encoder-decoder's.
        decoder = self._writes and self.backbone.kind == "decoder" and self.backbone.attends_only
        self.decoder = Decoder(bank, max_rows=limits.decode_rows, max_tokens=limits.decode_tokens) if decoder else None

    def check_writes(self) -> None:
        """BadRequest where the backbone writes no text."""
        if not self._writes:
            raise BadRequest(f"backbone {self.backbone.name!r} writes no text; ask its tasks for labels")

    @property
    def running(self) -> int:
        """Texts that are being written."""
        return len(self._writing)

    @property
    def room(self) -> int:
        """How many more may join."""
        if self.decoder is None:
            return TOGETHER if self._writes else 0
        return max(0, self.decoder.max_rows - len(self._writing))

    def classify(self, jobs: Sequence[Job]) -> None:
        """One forward pass for all; where it fails, each alone, so that one row cannot fail its neighbours.

        A GPU works on it while the batch before is answered, and while the next one is made ready.
        """
        before, self._asked = self._asked, []
        try:
            self._asked = [(list(jobs), self._scores(jobs))]
        except Exception as error:  # noqa: BLE001 - whatever it was, the others go on
            self._again(jobs, error)
        self._answer(before)
        if self.backbone.device.type == "cpu":
            self.answer()

    def answer(self) -> bool:
        """Answers the rows that the device works on. Whether there were any."""
        before, self._asked = self._asked, []
        self._answer(before)
        return bool(before)

    def _answer(self, asked: Sequence[tuple[list[Job], Returning]]) -> None:
        left = self.backbone.padding_side == "left"
        for jobs, scores in asked:
            try:
                answers = [_answered(job, own, left=left) for job, own in zip(jobs, scores.wait(), strict=True)]
            except Exception as error:  # noqa: BLE001 - whatever it was, the others go on
                self._again(jobs, error)
                continue
            for job, found in zip(jobs, answers, strict=True):
                self.finish(job, found)

    def _again(self, jobs: Sequence[Job], error: Exception) -> None:
        note_bug(f"a batch of {len(jobs)} rows failed", error)
        if len(jobs) == 1:
            self.finish(jobs[0], Failed(_failure(error)))
            return
        for job in jobs:
            self.classify([job])
            self.answer()

    @torch.inference_mode()
    def _scores(self, jobs: Sequence[Job]) -> Returning:
        rows = [job.row for job in jobs if job.row is not None]
        left = self.backbone.padding_side == "left"
        batch = join_rows(rows, pad_id=self.backbone.pad_id, left=left)
        return Returning(self.bank(batch, tasks=[job.key for job in jobs]))

    def write(self, joining: Sequence[Job], counts: Counts) -> bool:
        """Takes new prompts in, and brings all texts on by a token. Whether there was anything to do."""
        if self.decoder is None:
            if joining:
                self._write_whole(joining, counts)
            return bool(joining)
        for job in joining:
            self._join(self.decoder, job)
        if not self._writing:
            return False
        for one in self.decoder.step():
            self._emit(one, counts)
        return True

    def sweep(self, now: float) -> list[Job]:
        """Takes out the texts that nobody waits for, and those that are too late, which it returns."""
        late = []
        for writing, job in list(self._writing.items()):
            if job.cancelled or job.deadline <= now:
                assert self.decoder is not None
                self.decoder.cancel(writing)
                del self._writing[writing]
                if job.cancelled:
                    self.finish(job, None)
                else:
                    late.append(job)
        return late

    def _join(self, decoder: Decoder, job: Job) -> None:
        request = job.request
        assert isinstance(request, Generate)
        assert job.row is not None
        job.writing = Writing(job.row.ids, job.key, request.sampling)
        try:
            decoder.add(job.writing)
        except ConfigError as error:
            self.finish(job, Failed(BadRequest(str(error))))
            return
        self._writing[job.writing] = job

    def _emit(self, one: Emitted, counts: Counts) -> None:
        job = self._writing[one.writing]
        if one.error is not None:
            note_bug("writing failed", one.error)
            del self._writing[one.writing]
            self.finish(job, Failed(_failure(one.error)))
            return
        counts.tokens_out += 1
        job.unsent += 1
        # A word begins with its blank; a task's output does not.
        text = one.text.lstrip(" ") if job.version is not None and not job.text else one.text
        if text:
            job.text += text
            tokens, job.unsent = job.unsent, 0
            if not job.cancelled:
                job.tell(Piece(text, tokens))
        if one.finish is not None:
            del self._writing[one.writing]
            assert job.row is not None
            self.finish(job, Finished(one.finish, len(job.row.ids), len(one.writing.new), job.text))

    def _write_whole(self, jobs: Sequence[Job], counts: Counts) -> None:
        """An encoder-decoder's texts, each batch from beginning to end; where it fails, each alone, as in `classify`."""
        alike: dict[object, list[Job]] = {}
        for job in jobs:
            assert isinstance(job.request, Generate)
            sampling = job.request.sampling
            # Drawn texts have a seed of their own, so they are written alone.
            word = sampling.max_tokens if not sampling.temperature else job
            alike.setdefault(word, []).append(job)
        for group in alike.values():
            try:
                found = self._written(group)
            except Exception as error:  # noqa: BLE001 - whatever it was, the others go on
                note_bug(f"writing {len(group)} texts failed", error)
                if len(group) > 1:
                    for job in group:
                        self._write_whole([job], counts)
                    continue
                refused = BadRequest(str(error)) if isinstance(error, IntarsiaError) else _failure(error)
                self.finish(group[0], Failed(refused))
                continue
            for job, (event, tokens) in zip(group, found, strict=True):
                counts.tokens_out += tokens
                if event.text and not job.cancelled:
                    job.tell(Piece(event.text, tokens))
                self.finish(job, event)

    def _written(self, jobs: Sequence[Job]) -> list[tuple[Finished, int]]:
        tokenizer, rows = self.backbone.tokenizer, [job.row for job in jobs if job.row is not None]
        request = jobs[0].request
        assert isinstance(request, Generate)
        sampling = request.sampling
        decoding = Decoding(
            max_new_tokens=sampling.max_tokens,
            sample=sampling.temperature > 0,
            temperature=max(sampling.temperature, COLDEST) if sampling.temperature else 1.0,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=abs(sampling.seed),
        )
        left = self.backbone.kind == "decoder"
        batch = join_rows(rows, pad_id=self.backbone.pad_id, left=left)
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found = []
        for job, row, new in zip(
            jobs, rows, self.bank.generate(batch, [job.key for job in jobs], decoding), strict=True
        ):
            assert isinstance(job.request, Generate)
            ids, stream = new.tolist(), TextStream(tokenizer, [], job.request.sampling.stop)
            for token in ids:
                stream.push(token)
                if stream.stopped:
                    break
            stream.finish()
            ended = stream.stopped or len(ids) < sampling.max_tokens
            text = stream.text.lstrip(" ")
            found.append((Finished("stop" if ended else "length", len(row.ids), len(ids), text), len(ids)))
        return found


def _answered(job: Job, scores: Tensor, *, left: bool) -> Answer:
    assert job.row is not None
    assert job.version is not None
    assert job.version.task.head is not None
    return Answer(answer_row(job.texts, job.version.task.head, job.row, scores, left=left))


def _failure(error: Exception) -> EngineFailure:
    return EngineFailure(f"the model failed on this request ({type(error).__name__}); the server's log says more")
