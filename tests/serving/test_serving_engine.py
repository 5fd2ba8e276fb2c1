"""The engine: every answer is the solo answer, whoever asks meanwhile; tasks come and go; what cannot be asked is refused."""

import random
import threading
import time

import pytest

from intarsia.backbone import Backbone
from intarsia.errors import TaskError
from intarsia.serving.limits import Limits
from intarsia.serving.requests import (
    BadRequest,
    Classify,
    Generate,
    Piece,
    Tag,
    TooLarge,
    UnknownTask,
)
from intarsia.serving.sampling import Sampling
from serving.served import Asked, engine_over, make, save, solo
from workflow.tiny_run import WORDS, make_encoder_decoder


def sentences(number, seed=0, longest=12):
    shuffle = random.Random(seed)
    return [" ".join(shuffle.choices(WORDS, k=shuffle.randint(1, longest))) for _ in range(number)]


def close(one, other):
    assert one.label == other.label
    if isinstance(one.scores, dict):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_answers_to_many_callers_are_the_solo_answers(encoder, tmp_path):
    for number in range(8):
        save(encoder, tmp_path, f"task{number}", number, seed=number)
    save(encoder, tmp_path, "names", 1, kind="token-classification", labels=("O", "PER"))
    save(encoder, tmp_path, "stars", 0, kind="regression")
    texts = sentences(10)
    special = {
        "names": (1, {"kind": "token-classification", "labels": ("O", "PER")}),
        "stars": (0, {"kind": "regression"}),
    }
    want = {}
    with engine_over(encoder) as engine:
        for folder in sorted(tmp_path.iterdir()):
            engine.put(folder.name, folder)
            number, head = special.get(folder.name) or (int(folder.name[4:]), {})
            want[folder.name] = make(encoder, folder.name, number, 0 if head else number, **head)
        found, faults = [], []

        def caller(seed):
            shuffle = random.Random(seed)
            try:
                for _ in range(25):
                    name, text = shuffle.choice(sorted(want)), shuffle.choice(texts)
                    request = (
                        Tag(task=name, words=tuple(text.split()))
                        if name == "names"
                        else Classify(task=name, texts=(text,))
                    )
                    found.append((name, text, Asked(engine, request).end()))
            except Exception as error:  # noqa: BLE001 - shown below
                faults.append(error)

        callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
        for one in callers:
            one.start()
        for one in callers:
            one.join()
    assert not faults
    assert len(found) == 100
    alone = {(name, text): solo(encoder, task, [text])[0] for name, task in want.items() for text in texts}
    for name, text, answer in found:
        close(answer, alone[name, text])
        if name == "stars":
            assert answer.prediction == pytest.approx(alone[name, text].prediction, abs=1e-5)


def test_a_request_finishes_on_the_version_that_it_began_with(encoder, tmp_path):
    versions = [make(encoder, "moving", number, seed=number) for number in range(4)]
    for number, task in enumerate(versions):
        task.save(tmp_path / str(number))
    texts = sentences(6)
    alone = {(task.version, text): solo(encoder, task, [text])[0] for task in versions for text in texts}
    with engine_over(encoder, limits=Limits(wait_ms=5)) as engine:
        engine.put("moving", tmp_path / "0")
        asked, stop = [], threading.Event()

        def caller():
            shuffle = random.Random(1)
            while not stop.is_set():
                text = shuffle.choice(texts)
                with engine._lock:  # so that nobody swaps between reading the version and asking
                    version = engine._current["moving"].task.version
                    one = Asked(engine, Classify(task="moving", texts=(text,)))
                asked.append((version, text, one))
                while sum(one.events.empty() for _, _, one in asked) > 500:  # a GPU compiles its kernels first
                    time.sleep(0.01)
                time.sleep(0.001)

        thread = threading.Thread(target=caller)
        thread.start()
        for turn in range(40):
            engine.put("moving", tmp_path / str(turn % 4))
        stop.set()
        thread.join()
        for version, text, one in asked:
            close(one.end(), alone[version, text])
        assert len({version for version, _, _ in asked}) > 1
        deadline = time.monotonic() + 5
        while len(engine._bank.tasks) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(engine._bank.tasks) == 1
        assert [card.version for card in engine.cards()] == [versions[3].version]


def test_a_version_may_come_back_while_a_request_is_still_on_it(encoder, tmp_path):
    versions = [make(encoder, "moving", number, seed=number) for number in range(2)]
    for number, task in enumerate(versions):
        task.save(tmp_path / str(number))
    want = solo(encoder, versions[0], ["the film"])[0]
    with engine_over(encoder, limits=Limits(wait_ms=500)) as engine:
        engine.put("moving", tmp_path / "0")
        before = Asked(engine, Classify(task="moving", texts=("the film",)))
        engine.put("moving", tmp_path / "1")
        engine.put("moving", tmp_path / "0")
        after = Asked(engine, Classify(task="moving", texts=("the film",)))
        assert before.events.empty(), "the first request must still wait"
        close(before.end(), want)
        close(after.end(), want)
        engine.remove("moving")
        assert not engine._bank.tasks


def test_only_the_engines_thread_runs_the_model_whatever_is_loaded_meanwhile(encoder, tmp_path):
    save(encoder, tmp_path, "prefix", 2)
    encoder.pretrained._heads.clear()  # as in a process that has made no task of its own
    with engine_over(encoder) as engine:
        threads = []
        handle = encoder.base.register_forward_pre_hook(lambda *_: threads.append(threading.current_thread().name))
        engine.put("prefix", tmp_path / "prefix")
        Asked(engine, Classify(task="prefix", texts=("the film",))).end()
        handle.remove()
    assert set(threads) == {"intarsia-engine"}


def test_generated_texts_are_the_solo_texts_and_come_in_pieces(decoder, tmp_path):
    for number in range(4):
        save(decoder, tmp_path, f"task{number}", number, seed=number, kind="generation")
    with engine_over(decoder) as engine:
        for folder in sorted(tmp_path.iterdir()):
            engine.put(folder.name, folder)
        texts = sentences(6, longest=5)
        sampling = Sampling(max_tokens=8)
        asked = []
        for number, text in enumerate(texts * 3):
            name = f"task{number % 4}"
            asked.append((name, text, Asked(engine, Generate(task=name, prompt=text, sampling=sampling))))
        plain = Asked(engine, Generate(task=None, prompt="the film", sampling=sampling)).end()
        answered = [(name, text, one.all()) for name, text, one in asked]
        assert engine.gauges()["tokens_out"] >= plain.new_tokens + sum(found[-1].new_tokens for _, _, found in answered)
    assert plain.prompt_tokens == 2
    for name, text, (*pieces, end) in answered:
        task = make(decoder, name, int(name[4:]), int(name[4:]), kind="generation")
        task.data |= {"target_length": 12, "generation": {"max_new_tokens": 8}}
        assert end.text.strip() == solo(decoder, task, [text])[0].prediction
        assert "".join(piece.text for piece in pieces) == end.text
        assert all(isinstance(piece, Piece) for piece in pieces)
        assert end.reason == ("length" if end.new_tokens == 8 else "stop")


def test_an_encoder_decoder_writes_too(tmp_path):
    backbone = Backbone.load(str(make_encoder_decoder(tmp_path / "t5")), dtype="float32")
    save(backbone, tmp_path, "writer", 2, kind="generation")
    with engine_over(backbone) as engine:
        engine.put("writer", tmp_path / "writer")
        sampling, texts = Sampling(max_tokens=6), sentences(4)
        ends = [Asked(engine, Generate(task="writer", prompt=text, sampling=sampling)).end() for text in texts]
    task = make(backbone, "writer", 2, kind="generation")
    task.data |= {"target_length": 12, "generation": {"max_new_tokens": 6}}
    assert [end.text.strip() for end in ends] == [one.prediction for one in solo(backbone, task, texts)]


def test_what_a_task_cannot_take_is_refused_in_one_line(encoder, decoder, tmp_path):
    save(encoder, tmp_path, "mood")
    save(encoder, tmp_path, "names", kind="token-classification", labels=("O", "PER"))
    with engine_over(encoder, limits=Limits(text_bytes=50, queue=100)) as engine:
        for name in ("mood", "names"):
            engine.put(name, tmp_path / name)
        cases = [
            (Classify(task="moot", texts=("a",)), UnknownTask, "no such task"),
            (Classify(task="names", texts=("a",)), BadRequest, "POST /v1/tag"),
            (Tag(task="mood", words=("a",)), BadRequest, "POST /v1/classify"),
            (Generate(task="mood", prompt="a", sampling=Sampling()), BadRequest, "POST /v1/classify"),
            (Generate(task=None, prompt="a", sampling=Sampling()), BadRequest, "writes no text"),
            (Classify(task="mood", texts=("a" * 51,)), TooLarge, "51 bytes"),
            (Classify(task="mood", texts=("a", "b")), BadRequest, "takes 1 text"),
            (Classify(task="mood", texts=(" ",)), BadRequest, "empty"),
        ]
        for request, error, words in cases:
            with pytest.raises(error, match=words) as caught:
                Asked(engine, request).end()
            assert "\n" not in str(caught.value)
        with pytest.raises(TaskError, match="no task named"):
            engine.remove("moot")
    with engine_over(decoder, limits=Limits(new_tokens=10)) as engine:
        with pytest.raises(BadRequest, match="at most 10"):
            Asked(engine, Generate(task=None, prompt="good", sampling=Sampling(max_tokens=11)))
        with pytest.raises(BadRequest, match="places for 32"):
            Asked(engine, Generate(task=None, prompt="good " * 28, sampling=Sampling(max_tokens=9))).end()
        with pytest.raises(BadRequest, match="chat template"):
            Asked(
                engine,
                Generate(
                    task=None, prompt="", chat=({"role": "user", "content": "good"},), sampling=Sampling(max_tokens=5)
                ),
            ).end()
