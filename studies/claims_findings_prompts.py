"""The findings on prompts at the input and on P-tuning v2."""

import statistics

from studies.claims_facts import (
    BLEU_EQUAL,
    CLEAR,
    DATA,
    EQUAL,
    Facts,
    Finding,
    Verdict,
    complete,
    finding,
    gaps,
    judged,
    listed,
    over_data,
)

TEXTS = ("sst2", "trec")


def prompts(facts: Facts) -> list[Finding]:
    study = "prompts_classification"
    return [
        finding("20 tokens suffice", "beyond 20 little gain",
                f"100 tokens bring {EQUAL:g} point at most, on average over SST-2 and TREC as text", study, long_prompts(facts)),
        finding("one token is poor (except for the largest model)", "figure 3a", f"at least {CLEAR:g} points below 20 tokens",
                study, one_token(facts)),
        finding("label words and vocabulary are better beginnings than uniform numbers",
                "figure 3b: label >= vocabulary >> uniform",
                f"each more than {BLEU_EQUAL:g} points above uniform", study, beginnings(facts)),
        finding("the gap to full fine-tuning shrinks with the size of the model", "figure 1: gone at 11B",
                "smaller over SmolLM2-135M than over MiniLM-22M, on both data sets", "claims", sizes(facts)),
    ]  # fmt: skip


def of_prompt(facts: Facts, variant: str) -> float | None:
    return over_data(lambda data: facts.text(data, variant), TEXTS)


def long_prompts(facts: Facts) -> tuple[str, Verdict] | None:
    found = complete(lambda n: of_prompt(facts, f"prompt {n}, vocabulary"), (1, 5, 20, 100))
    values = dict(found)
    if not {20, 100} <= values.keys():
        return None
    return listed(found), judged(values[100] - values[20] <= EQUAL)


def one_token(facts: Facts) -> tuple[str, Verdict] | None:
    one, twenty = (of_prompt(facts, f"prompt {n}, vocabulary") for n in (1, 20))
    if one is None or twenty is None:
        return None
    each = "; ".join(f"{DATA[d]} {facts.text(d, 'prompt 1, vocabulary'):.1f} against "
                     f"{facts.text(d, 'prompt 20, vocabulary'):.1f}" for d in TEXTS)  # fmt: skip
    return each, judged(one <= twenty - CLEAR)


def beginnings(facts: Facts) -> tuple[str, Verdict] | None:
    found = dict(
        complete(lambda init: of_prompt(facts, f"prompt 20, {init}"), ("labels", "vocabulary", "text", "uniform"))
    )
    if not {"labels", "vocabulary", "uniform"} <= found.keys():
        return None
    better = [found[init] > found["uniform"] + BLEU_EQUAL for init in ("labels", "vocabulary")]
    return listed(list(found.items())), judged(*better)


def sizes(facts: Facts) -> tuple[str, Verdict] | None:
    found = gaps(facts.own)
    pairs = [(found.get(("minilm", data)), found.get(("smollm2", data))) for data in TEXTS]
    if None in sum(pairs, ()):
        return None
    words = "; ".join(
        f"{DATA[data]} {small:.1f}, then {large:.1f}" for data, (small, large) in zip(TEXTS, pairs, strict=True)
    )
    longer = [(facts.adapter(data, "full"), facts.best_prompt(data)) for data in TEXTS]
    if all(full is not None and flat is not None for full, flat in longer):
        more = " and ".join(f"{full - flat['test accuracy']:.1f}" for full, flat in longer)  # type: ignore[operator, index]
        words += f" (MiniLM with 4 and 8 epochs: {more})"
    return f"points behind: {words}", judged(*(large < small for small, large in pairs))  # type: ignore[operator]


# -- P-tuning v2 -------------------------------------------------------------------------------------------------------


def ptuning(facts: Facts) -> list[Finding]:
    return [
        finding("beats prompt tuning on small models",
                "BERT-large, RTE: 78.3 against 53.5, BoolQ: 75.8 against 67.2 (quoted from memory)",
                f"more than {EQUAL:g} point above on average over the three data sets",
                "prompts_classification", small(facts)),
        finding("beats prompt tuning on tagging",
                "F1, RoBERTa-large: CoNLL03 92.8 against 86.1, OntoNotes 89.8 against 80.8 (quoted from memory)",
                f"at least {CLEAR:g} points of F1 above", "claims", tagging(facts)),
    ]  # fmt: skip


def small(facts: Facts) -> tuple[str, Verdict] | None:
    words, gains = [], []
    for data, name in DATA.items():
        mine = [r for r in facts.prompts if (r["backbone"], r["data"]) == ("MiniLM", data)]
        deep = next((r["test accuracy"] for r in mine if r["method"] == "ptuning-v2 20"), None)
        flat = facts.best_prompt(data)
        if deep is None or flat is None:
            return None
        words.append(f"{name} {deep:.1f} against {flat['test accuracy']:.1f} ({flat['seeds']} seeds)")
        gains.append(deep - flat["test accuracy"])
    return "; ".join(words), judged(statistics.mean(gains) > EQUAL)


def tagging(facts: Facts) -> tuple[str, Verdict] | None:
    names = ("P-tuning v2 20", "prompt 20", "adapters 48", "head")
    found = dict(complete(lambda name: facts.test("tagging", "slots", name), names))
    found |= dict(complete(lambda name: facts.test("tagging, full", "slots", name), ("full",)))
    if not {"P-tuning v2 20", "prompt 20"} <= found.keys():
        return None
    return listed(list(found.items())), judged(found["P-tuning v2 20"] >= found["prompt 20"] + CLEAR)
