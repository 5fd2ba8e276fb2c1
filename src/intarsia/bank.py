"""TaskBank: many tasks on one backbone. The one place where a delta meets a site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, overload

import torch
from torch import Tensor

from intarsia.backbone import Backbone
from intarsia.backbone.entrance import Prompts
from intarsia.backbone.language import generate, own_draws, word_scores
from intarsia.backbone.packed import Slots
from intarsia.errors import ConfigError
from intarsia.given import alike, check_positions, check_targets, out_of_training, parts_of, row_names, text_names
from intarsia.graphs import LONGEST, MOST, Graphs, usual_batches
from intarsia.heads import IGNORED, Decoding, place, score_rows
from intarsia.reach import at_rest, at_work
from intarsia.residents import Residents
from intarsia.routing import NotByRow, Route
from intarsia.rows import Prediction, Row, RowReader, Tokens, answer_row, join_rows
from intarsia.sites import Role
from intarsia.staged import Returning
from intarsia.task import Task
from intarsia.turns import in_turn

RowTasks = list[str | None] | list[str] | tuple[str | None, ...]
"""The task of each row; None: the plain backbone."""
_T = TypeVar("_T")


class TaskBank(Residents):
    """Tasks on one backbone, and the calls that mix them in a batch.

    A row's result does not depend on its neighbours: rows are sorted by task once per batch, and at each site each task's
    delta works on its own rows. Tasks that replace weights of the backbone (`Task.alone`) get a pass of their own.

    A task with parameters that require gradients is used as it is, and stays the caller's. A frozen one is copied into the
    bank's own memory, where a thousand have room; the least recently used go to host memory beyond `capacity`.

    Threads that call banks on one backbone wait for one another. A loop of your own over the model itself does not.
    """

    def __init__(self, backbone: Backbone, tasks: Sequence[Task] = (), *, capacity: int | None = None) -> None:
        """capacity: bytes of stored tasks on the backbone's device; None: no limit."""
        super().__init__(backbone, capacity)
        self.graphs = Graphs(backbone, self.under) if backbone.device.type == "cuda" else None
        """Of passes without gradients; None: they are run as they are."""
        if isinstance(tasks, Task | str):
            raise ConfigError("TaskBank takes a list of tasks; give TaskBank(backbone, [task])")
        try:
            for task in tasks:
                self.add(task)
        except BaseException:
            self.detach()  # nobody has this bank, to take its hooks off
            raise

    @overload
    def __call__(self, batch: Mapping[str, Tensor], tasks: str) -> Tensor: ...
    @overload
    def __call__(self, batch: Mapping[str, Tensor], tasks: RowTasks) -> list[Tensor]: ...
    @in_turn
    def __call__(self, batch: Mapping[str, Tensor], tasks: str | RowTasks) -> Tensor | list[Tensor]:
        """One forward pass. batch: what the tokenizer gives, (B, T) tensors.

        tasks: one name for all rows -> scores (B, C), or (B, T, C) for token classification, in fp32; states (B, T, D) for a
        task without a head, or of generation. One name per row, None for the plain backbone -> a list of B results without
        the axis B. A prompt's virtual tokens are in none of them.
        With gradient checkpointing, run backward before the next call: the recomputation uses this call's routing.
        """
        if isinstance(tasks, str):
            name = self._known(tasks)
            names = self._names(batch, name)
            graphed = self._graphed(batch, names)
            with self.under(self._alone(name)):
                if (task := self.tasks[name]).words:
                    return self._again(word_scores(self.backbone, batch, task.words))
                states, mask = self._read(batch, names) if graphed is None else (graphed, self.backbone.mask(batch))
                pooler = getattr(self.backbone.base, "pooler", None)
                return task.head_module(states, mask, pooler) if task.head_module else states
        names = self._names(batch, tasks)
        if (states := self._graphed(batch, names)) is not None:
            return self._headed(states, self.backbone.mask(batch), names)
        return self._each_pass(names, lambda rows, names: self._scored(batch, rows, names))

    @in_turn
    def loss(self, batch: Mapping[str, Tensor], labels: Tensor, task: str) -> Tensor:
        """The task's mean loss on a batch. labels: as for losses.loss; for generation (B, T), -100 where nothing is to be learnt,
        at each token's own place, as transformers has them.

        Generation: the mean over target tokens; with Head.loss "sentence" their sum, as a mean over the rows.
        """
        name = self._known(task)
        head = self.tasks[name].head
        if head is None or head.kind != "generation":
            return self.tasks[name].loss(self(batch, tasks=name), labels)
        check_targets(batch, labels, head, self.backbone)
        check_positions(batch, self.backbone, self.tasks, self.virtual, [name] * len(labels))
        labels = labels.to(self.backbone.device)
        if self.backbone.kind == "decoder":
            # The state at a token says the next one.
            labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        wanted = labels != IGNORED
        with self.under(self._alone(name)):
            scores = self._again(self.backbone.token_scores(batch, wanted))
            mean = self.tasks[name].loss(scores, labels[wanted])
        return mean * wanted.sum() / len(labels) if head.loss == "sentence" else mean

    @in_turn
    @torch.no_grad()
    def generate(
        self, batch: Mapping[str, Tensor], tasks: str | RowTasks, decoding: Decoding | None = None
    ) -> list[Tensor]:
        """The new tokens of each row, B int64 tensors without padding and end-of-sequence token.

        batch: input_ids and attention_mask (B, T), padded on the left for decoders; tasks: one name, or one for each row (None:
        the plain backbone). Prompts, prefixes and all other methods mix. ConfigError where the model has no language-model head,
        or a decoder's rows end in padding.
        """
        decoding = Decoding() if decoding is None else decoding
        if not isinstance(decoding, Decoding):
            raise ConfigError(f"decoding must be a Decoding, such as Decoding(max_new_tokens=64); got {decoding!r}")
        _ = self.backbone.language_head
        names = self._names(batch, tasks, decoding.max_new_tokens)
        if "input_ids" not in batch:
            raise ConfigError(f"texts are written on from input_ids, and the batch has only {', '.join(batch)}")
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        if self.backbone.kind == "decoder" and not bool(mask[:, -1].all()):
            raise ConfigError("a decoder goes on from the last column, and some row ends in padding; pad on the left")
        whole = {**batch, "attention_mask": mask}
        return self._each_pass(names, lambda rows, own: self._generated(whole, rows, own, decoding))

    @in_turn
    @torch.no_grad()
    def predict(
        self, texts: Sequence[str | Sequence[str]], tasks: str | RowTasks, *, batch_size: int = 32
    ) -> list[Prediction]:
        """The answer of a task for each text, as `intarsia.predict` gives it; any tasks side by side, generation too.

        texts: a text, or all texts of a pair, or the words of a token-classification row. tasks: one name, or one for each text.
        Each is read as its task was trained (columns, template, longest row) and generated as it says (`data["generation"]`).
        Nothing is in training mode meanwhile.
        """
        known = [self._known(name) for name in text_names(texts, tasks, batch_size)]
        tokens = Tokens(self.backbone)
        readers = {name: RowReader(self.tasks[name], tokens, name) for name in dict.fromkeys(known)}
        given = [text if isinstance(text, str) else list(text) for text in texts]
        parts = [parts_of(text, readers[name]) for text, name in zip(given, known, strict=True)]
        rows = [readers[name].read(part) for part, name in zip(parts, known, strict=True)]
        found: dict[int, Prediction] = {}
        with out_of_training(self.backbone, [self.tasks[name] for name in readers]):
            for group in alike(rows, known, self.tasks, batch_size):
                answers = self._answered([rows[i] for i in group], [known[i] for i in group], [parts[i] for i in group])
                found |= dict(zip(group, answers, strict=True))
        return [found[index] for index in range(len(texts))]

    def _answered(self, rows: list[Row], names: list[str], parts: list[list[str]]) -> list[Prediction]:
        """Of rows that all classify, or all generate with the same settings."""
        tokenizer, heads = self.backbone.tokenizer, [self.tasks[name].head for name in names]
        writes = heads[0] is not None and heads[0].kind == "generation"
        left = self.backbone.kind == "decoder" if writes else self.backbone.padding_side == "left"
        batch = join_rows(rows, pad_id=self.backbone.pad_id, left=left)
        if not writes:
            logits = Returning(self(batch, tasks=names)).wait()
            each = zip(parts, heads, rows, logits, strict=True)
            return [answer_row(text, head, row, own, left=left) for text, head, row, own in each if head is not None]
        given = self.tasks[names[0]].data.get("generation", {})
        decoding = Decoding(**{key: value for key, value in given.items() if key in Decoding.__slots__})
        found = []
        for text, head, ids in zip(parts, heads, self.generate(batch, names, decoding), strict=True):
            written = str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()
            label = written if head is not None and written in head.labels else None
            found.append(Prediction(text=text, prediction=written, label=label, scores=None))
        return found

    def ahead(
        self, names: Iterable[str], *, tokens: int, rows: int, slots: Slots | None = None, types: bool = False
    ) -> Iterator[None]:
        """Makes the graphs of the passes that batches of these tasks will want, one with each step, so that no request waits for
        them. It ends early where one of the tasks goes.

        tokens: rows times the longest of a batch; slots: where texts will be written, of which none is in use; types: whether some
        rows may be pairs.
        """
        if self.graphs is None:
            return
        own = list(self.shapes(names).values())[:MOST]
        while not self.fits(own):
            own.pop()
        own.sort(key=lambda name: self.tasks[name].prompt is None)
        prompts = bool(own) and self.tasks[own[0]].prompt is not None
        longest = min(LONGEST, self.backbone.max_length)
        self.graphs.typed |= types
        for made in usual_batches(tokens, rows, longest, slots, prompts=prompts, types=types):
            there = all(name in self.tasks for name in own)
            if not there or not self.graphs.make(made, self.fetched(own) or [None], slots):
                return
            yield

    def entering(self, route: Route, rows: int) -> Prompts | None:
        """The prompts of so many rows of a decoder, for `Backbone.with_prompts`."""
        site = next((site for site in self.backbone.sites if site.role is Role.EMBED), None)
        return None if site is None else route.prompts(site.key, rows, self.backbone.device)

    def _each_pass(
        self, names: Sequence[str | None], run: Callable[[list[int], list[str | None]], Sequence[_T]]
    ) -> list[_T]:
        """What `run` gives for the rows of each pass, in the rows' own order."""
        try:
            found = {
                row: result
                for rows in self.passes(names)
                for row, result in zip(rows, run(rows, [names[row] for row in rows]), strict=True)
            }
        except NotByRow:
            # Found once, kept.
            self.mixes = False
            return self._each_pass(names, run)
        return [found[row] for row in range(len(names))]

    def _scored(self, batch: Mapping[str, Tensor], rows: list[int], names: list[str | None]) -> Sequence[Tensor]:
        part = _pick(batch, rows)
        first = None if names[0] is None else self.tasks[names[0]]
        if (states := self._graphed(part, names)) is not None:
            return self._headed(states, self.backbone.mask(part), names)
        with self.under(self.route(names)):
            if first is not None and first.words:
                return list(self._again(word_scores(self.backbone, part, first.words)))
            states, mask = self._read(part, names)
        return self._headed(states, mask, names)

    def _read(self, batch: Mapping[str, Tensor], names: Sequence[str | None]) -> tuple[Tensor, Tensor | None]:
        """What the rows' heads read, (B, T, D), and which of it is of real tokens; where each reads one state, (B, 1, D) and None.
        Under the rows' route."""
        mask = self.backbone.mask(batch)
        heads = [None if name is None else self.tasks[name].head for name in names]
        if mask is None or not all(head is not None and head.reads_one for head in heads):
            return self._again(self.backbone.features(batch)), mask
        last = torch.tensor([head is not None and head.pooling == "last" for head in heads]).to(mask.device)
        places = torch.where(last, place(mask, "last"), place(mask, "cls"))
        return self._again(self.backbone.states_at(batch, places[:, None])), None

    def _headed(self, states: Tensor, mask: Tensor | None, names: Sequence[str | None]) -> list[Tensor]:
        """Each row by its task's head. states: (B, T, D), mask: (B, T)."""
        heads = [None if name is None else self.tasks[name].head_module for name in names]
        pooled: dict[int, Tensor] = {}
        for row, name in enumerate(names):
            # The pretrained pooler may have a task's deltas in it, so it sees each row by itself.
            if name is not None and (head := heads[row]) is not None and head.head.pooling == "pooler":
                with self.under(self._alone(name)):
                    seen = None if mask is None else mask[row : row + 1]
                    pooled[row] = head(states[row : row + 1], seen, self.backbone.base.pooler)[0]
        scores = score_rows(states, mask, [None if row in pooled else head for row, head in enumerate(heads)])
        return [pooled.get(row, score) for row, score in enumerate(scores)]

    def _graphed(self, batch: Mapping[str, Tensor], names: list[str | None]) -> Tensor | None:
        """The states of all rows by a CUDA graph, (B, T, D); None where there is none for them."""
        if self.graphs is None or torch.is_grad_enabled() or not self.fits(names):
            return None
        if any(name is not None and self.tasks[name].words for name in names):
            return None
        return self.graphs.features(batch, self.fetched(names))

    def _generated(
        self, batch: Mapping[str, Tensor], rows: list[int], names: list[str | None], decoding: Decoding
    ) -> list[Tensor]:
        part, decoder = _pick(batch, rows), self.backbone.kind == "decoder"
        prompts = self.entering(self.route(names), len(rows)) if decoder else None
        route, seed = self.route(names, entered=decoder, beams=True), decoding.seed if decoding.sample else None
        with self.under(route), own_draws(self.backbone, part["input_ids"], seed):
            return generate(self.backbone, part, decoding.settings(), prompts)

    def _names(self, batch: Mapping[str, Tensor], tasks: str | Sequence[str | None], new: int = 0) -> list[str | None]:
        """The task of each row; ConfigError where the backbone has no positions for a row and `new` tokens behind it."""
        names = [None if name is None else self._known(name) for name in row_names(batch, tasks)]
        check_positions(batch, self.backbone, self.tasks, self.virtual, names, new)
        return names

    def _again(self, states: Tensor) -> Tensor:
        """Gradient checkpointing runs the hooks again during backward, and then wants this call's routing."""
        if states.requires_grad and self.backbone.checkpointing:
            route = self.current

            def during(_grad: Tensor) -> None:
                at_work(self, route)
                torch.autograd.Variable._execution_engine.queue_callback(lambda: at_rest(self))

            states.register_hook(during)
        return states


def _pick(batch: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    index = torch.tensor(rows)
    return {name: tensor[index.to(tensor.device)] for name, tensor in batch.items()}
