"""The passes of one bank's mixed rows, where its backbone allows them.

B rows, T columns of the caller's batch, D width of the states, V words.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from intarsia.addressed import readable
from intarsia.backbone import Backbone
from intarsia.backbone.packed import Slots
from intarsia.errors import UnsupportedError
from intarsia.graphs.layout import Packed, pack, pack_rows
from intarsia.graphs.one import Key, OnePass, Under, Written
from intarsia.graphs.sizes import LONGEST, columns_of, longest_of, rows_of
from intarsia.ops import ALIGN, NOBODY, fused, offsets_from
from intarsia.routing import Resident
from intarsia.sites import Role
from intarsia.staged import to_device
from intarsia.storage import Form, Stored

log = logging.getLogger("intarsia.graphs")
_KEPT = 512
"""Graphs; the least recently used go."""
OFTEN = 500
"""How often rows take a graph of more forms than they have, before they get their own: what it launches for a form in vain takes
some 50 us of each pass, and making another as long as some hundred times that."""
_OWN = 4
"""Graphs of one size, for different forms, that are made for that reason."""
MOST = 8
"""Forms of a graph that is made for any rows which have some of them."""


class Graphs:
    """One for each size and set of forms, made when it is first wanted. Without a GPU the passes are run as they are."""

    def __init__(self, backbone: Backbone, under: Under) -> None:
        self.backbone, self._under = backbone, under
        self._passes: OrderedDict[Key, OnePass] = OrderedDict()
        self._sizes: dict[Key, list[Key]] = {}
        """The keys of `_passes`, by what they are without forms."""
        self._asked: Counter[Key] = Counter()
        self._never: set[Key] = set()
        """What cannot be a graph: the model waits for the device in between, as the routing of experts does."""
        self._refused: set[Key] = set()
        """What the model does that packed rows do not know (ModernBERT's window, for long rows), found out by running it."""
        self._said: set[str] = set()
        self.typed = False
        """Whether token types go in where a batch has none, too: all are 0 then, and one graph does for pairs and for others."""
        with torch.inference_mode(False):
            self._anchor = torch.zeros(ALIGN, dtype=backbone.dtype, device=backbone.device)
        self._on_gpu = backbone.device.type == "cuda"
        self._outs: dict[str, Tensor] = {}
        self._stream, self._pool = None, None
        self._fresh()

    @cached_property
    def able(self) -> bool:
        """Whether there are any for this backbone. Its attention is tried: rows that it did not keep apart would see each other."""
        backbone = self.backbone
        sites = [site for site in backbone.sites if site.role is Role.KV]
        if not sites or backbone.kind == "encoder-decoder" or not backbone.family.gives_input_embeddings:
            return False
        usual = backbone.attends_only and backbone.counts_positions and not backbone.has_experts
        if not usual or (self._on_gpu and not fused(self._anchor)):
            return False
        try:
            return all(backbone.pretrained.heads(site) for site in sites)
        except UnsupportedError:
            return False

    def features(self, batch: Mapping[str, Tensor], rows: Sequence[Resident | None]) -> Tensor | None:
        """As Backbone.features, (B, T, D), with each row's task; None where it has to be done otherwise."""
        if not self.able or torch.is_grad_enabled() or not readable(rows):
            return None
        if not {"input_ids"} <= batch.keys() <= {"input_ids", "attention_mask", "token_type_ids"}:
            return None
        ids, mask, types = _on_cpu(batch)
        types = np.zeros_like(ids) if types is None and self.typed else types
        decoder = self.backbone.kind == "decoder"
        made, back = pack_rows(ids, mask, types, *_prompts(rows), after=decoder)
        if made.lengths.max() > LONGEST or not made.lengths.min():
            return None
        with torch.inference_mode(False), torch.no_grad():
            states = self._run(made, rows, None)
            return None if states is None else states.index_select(0, self._sent(back)).view(*mask.shape, -1)

    def scores(
        self, tokens: Sequence[Sequence[int]], rows: Sequence[Resident | None], slots: Slots, written: Written
    ) -> Tensor | None:
        """The scores (B, V), fp32, of the word after each row's tokens, which join those that its slot has; None where it has to be
        done otherwise. A row's prompt goes in with its first tokens. The tensor is good until the next call."""
        virtual, places = _prompts(rows)
        fresh = np.asarray(written.lengths) == 0
        places = [place if new else "" for place, new in zip(places, fresh, strict=True)]
        lengths = np.array([len(own) for own in tokens])
        made = pack(np.concatenate(tokens), None, lengths, virtual * fresh, places, after=True)
        with torch.inference_mode(False), torch.no_grad():
            found = self._run(made, rows, (slots, written))
            return None if found is None else found[: len(rows)]

    def _run(
        self, made: Packed, rows: Sequence[Resident | None], writing: tuple[Slots, Written] | None
    ) -> Tensor | None:
        """What the pass puts out; None where the model does what packed rows do not know."""
        slots, written = writing or (None, None)
        forms = {row.form for row in rows if isinstance(row, Stored)}
        key, kept = self._chosen(self._key(made, forms, slots))
        if key in self._refused:
            return None
        one = self._passes.get(key) or OnePass(self.backbone, key, self._anchor, self._room(key))
        flats = self._fill(one, made, rows, written)
        try:
            self._send(one, flats, kept)
        except UnsupportedError as error:
            self._say("rows are padded, not packed", str(error))
            self._refused.add(key)
            return None
        return one.out

    def _key(self, made: Packed, forms: Iterable[Form], slots: Slots | None) -> Key:
        return Key(
            columns_of(len(made.ids)),
            rows_of(len(made.lengths)),
            longest_of(int(made.lengths.max())),
            made.types is not None,
            bool((made.ids < 0).any()),
            tuple(sorted(forms, key=id)),
            slots,
        )

    def _fill(
        self, one: OnePass, made: Packed, rows: Sequence[Resident | None], written: Written | None
    ) -> Sequence[Tensor | None]:
        """The next batch; its rows' flat tensors."""
        forms = [row.form if isinstance(row, Stored) else None for row in rows]
        flats = [row.flat if isinstance(row, Stored) else None for row in rows]
        number = {form: index for index, form in enumerate(one.key.forms)} | {None: NOBODY}
        moved = np.array([self.backbone.first_position + (0 if form is None else form.offset) for form in forms])
        moved = moved + (0 if written is None else np.asarray(written.lengths))
        one.fill(made, offsets_from(self._anchor, flats), [number[form] for form in forms], moved, written)
        if one.key.entered:
            self._enter(one, made, flats, forms)
        return flats

    def make(self, made: Packed, residents: Sequence[Resident | None], slots: Slots | None) -> bool:
        """Makes the graph of such a batch, where there is none: for rows of all these tasks, even if it has fewer rows. Whether
        others are worth a try, too."""
        if not (self._on_gpu and self.able):
            return False
        key = self._key(made, {one.form for one in residents if isinstance(one, Stored)}, slots)
        if key in self._passes or key in self._refused or key in self._never:
            return key in self._passes
        count = len(made.lengths)
        with torch.inference_mode(False), torch.no_grad():
            one = OnePass(self.backbone, key, self._anchor, self._room(key))
            written = None if slots is None else Written(range(count), [0] * count)
            self._fill(one, made, [residents[row % len(residents)] for row in range(count)], written)
            try:
                self._make(one)
            except UnsupportedError as error:
                self._say("rows are padded, not packed", str(error))
                self._refused.add(key)
        return one.replay is not None

    def _chosen(self, key: Key) -> tuple[Key, bool]:
        """The key of a graph that serves these rows, and whether it is there or worth making; else the pass is run as it is.

        Rows of any forms come together by chance, and making a graph takes ten times as long as a pass. So a graph of other rows
        that knows more forms will do, for a while; and the first rows of their sort get none.
        """
        if key in self._passes:
            return key, True
        if not all(form.users for form in key.forms):
            # A text whose task has been taken out: a graph would lack what the next task of its shape needs.
            return key, False
        if len(self._asked) > 100 * _KEPT:
            self._asked.clear()
        alike = self._sizes.get(key._replace(forms=()), [])
        wider = [other for other in alike if set(key.forms) <= set(other.forms)]
        self._asked[key] += 1
        if wider:
            own = self._asked[key] > OFTEN and len(alike) < _OWN and key not in self._never
            return (key if own else min(wider, key=lambda other: len(other.forms))), True
        both = {form for other in (key, *alike) for form in other.forms if form.users}
        if alike and len(both) <= MOST:
            wanted = key._replace(forms=tuple(sorted(both, key=id)))
            self._asked[wanted] += 1
            return (wanted, True) if self._asked[wanted] > 1 and wanted not in self._never else (key, False)
        return key, self._asked[key] > 1 and key not in self._never

    def _send(self, one: OnePass, flats: Sequence[Tensor | None], kept: bool) -> None:
        if self._on_gpu and kept and one.replay is None:
            self._make(one)
        if one.replay is None:
            one.run(self._under, one.route(flats))
        else:
            self._passes.move_to_end(one.key)
            one.replay()

    def _make(self, one: OnePass) -> None:
        assert self._stream is not None
        why = one.capture(self._under, self._stream, self._pool)
        if one.replay is None:
            self._say("a pass is no CUDA graph, and is run as it is", why)
            self._never.add(one.key)
            self._fresh()  # the failed capture may go on in the old ones
            return
        self._passes[one.key] = one
        self._sizes.setdefault(one.key._replace(forms=()), []).append(one.key)
        if len(self._passes) > _KEPT:
            self._drop(next(iter(self._passes)))

    def _fresh(self) -> None:
        if self.backbone.device.type == "cuda":
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def _say(self, what: str, why: str) -> None:
        """Once for each reason: nobody sees by the answers that they are slow."""
        if why not in self._said:
            self._said.add(why)
            log.warning("%s: %s: %s", self.backbone.name, what, why)

    def _drop(self, key: Key) -> None:
        del self._passes[key]
        self._sizes[key._replace(forms=())].remove(key)

    def forget(self, slots: Slots) -> None:
        """The graphs that write to these go, and their memory with them."""
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()  # one of them may be running
        for key in [key for key in self._passes if key.slots is slots]:
            self._drop(key)
        self._sizes = {size: keys for size, keys in self._sizes.items() if keys}
        self._asked = Counter({key: count for key, count in self._asked.items() if key.slots is not slots})
        self._never = {key for key in self._never if key.slots is not slots}
        self._refused = {key for key in self._refused if key.slots is not slots}

    def _enter(self, one: OnePass, made: Packed, flats: Sequence[Tensor | None], forms: Sequence[Form | None]) -> None:
        """Embeddings of the tokens, and the prompts' vectors in their columns."""
        embedded = self.backbone.base.get_input_embeddings()(one.here["ids"])  # type: ignore[operator]
        virtual = np.flatnonzero(made.ids < 0)
        owner = made.owner[virtual]
        for form in {form for form in forms if form is not None and form.prompt is not None}:
            own = [row for row in np.unique(owner) if forms[row] is form]
            mine = np.isin(owner, own)
            if not mine.any():
                continue
            vectors = _vectors(form, [flat for row in own if (flat := flats[row]) is not None])
            source = np.searchsorted(own, owner[mine]) * vectors.shape[1] + (-1 - made.ids[virtual[mine]])
            picked = vectors.flatten(0, 1).index_select(0, self._sent(source)).to(embedded.dtype)
            embedded[0].index_copy_(0, self._sent(virtual[mine]), picked)
        if one.embedded is None:
            one.embedded = embedded.clone()
        else:
            one.embedded.copy_(embedded)

    def _sent(self, index: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(index)), self.backbone.device)

    def _room(self, key: Key) -> Tensor:
        """One for all graphs of a sort; those that have an older, smaller one keep it."""
        if key.slots is None:
            sort, rows, width, dtype = "states", key.columns, self.backbone.hidden, self.backbone.dtype
        else:
            words = len(self.backbone.language_head.weight)  # type: ignore[arg-type]
            sort, rows, width, dtype = "scores", key.rows, words, torch.float32
        if sort not in self._outs or len(self._outs[sort]) < rows:
            self._outs[sort] = torch.zeros(rows, width, dtype=dtype, device=self.backbone.device)
        return self._outs[sort]


def _prompts(rows: Sequence[Resident | None]) -> tuple[np.ndarray, list[str]]:
    """Virtual tokens of each row, and where they stand."""
    prompts = [row.form.prompt if isinstance(row, Stored) else None for row in rows]
    lengths = [0 if prompt is None else prompt.length for prompt in prompts]
    return np.array(lengths), ["" if prompt is None else prompt.place for prompt in prompts]


def _vectors(form: Form, flats: Sequence[Tensor]) -> Tensor:
    """(n, P, E): the prompts of n tasks."""
    key = next(key for key, shell in form.shells.items() if shell is form.prompt)
    delta = form.delta(key, form.pieces(torch.stack(list(flats))))
    assert delta is not None
    return delta()


def _on_cpu(batch: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Tokens, mask and types, (B, T)."""
    ids = batch["input_ids"].cpu().numpy()
    mask = batch["attention_mask"].cpu().numpy() if "attention_mask" in batch else np.ones_like(ids)
    return ids, mask != 0, batch["token_type_ids"].cpu().numpy() if "token_type_ids" in batch else None
