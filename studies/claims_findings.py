"""What the figures say of each claim, by rules that were written before the figures of studies.claims were known."""

import statistics

from studies.claims import LENGTHS, STDS, TEXT_LENGTHS, WIDTHS
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
    judged,
    listed,
    losses,
    over_data,
)
from studies.claims_findings_prompts import prompts, ptuning
from studies.table_to_text import SIZES


def findings(facts: Facts) -> dict[str, list[Finding]]:
    """By paper."""
    return {
        "Adapters (Houlsby et al. 2019)": adapters(facts),
        "Prefix tuning (Li and Liang 2021)": prefixes(facts),
        "Prompt tuning (Lester et al. 2021)": prompts(facts),
        "P-tuning v2 (Liu et al. 2022)": ptuning(facts),
    }


# -- adapters ----------------------------------------------------------------------------------------------------------


def adapters(facts: Facts) -> list[Finding]:
    study, own = "adapters_classification", "claims"
    return [
        finding("within 0.4 points of full fine-tuning at 3.6 % of the parameters or less",
                "80.0 against 80.4 on GLUE (BERT-large)", "mean of the three data sets at most 0.4 below", study,
                near_full(facts)),
        finding("the size, 8 to 256, barely matters", "86.2, 85.8, 85.7 at 8, 64, 256", f"means within {EQUAL:g} point",
                own, widths(facts)),
        finding("LayerNorms alone and the top layer alone are far below", "-3.5 to -4, and -6.6 on MNLI",
                f"each at least {CLEAR:g} points below full fine-tuning", study, far_below(facts)),
        finding("robust to initial values of std 1e-7 to 1e-2, worse above", "CoLA and MNLI, figure 6",
                f"up to 1e-2 within {EQUAL:g} point of each other; 1e-1 or 1 more than that below 1e-2", own, stds(facts)),
        finding("taking out one layer's adapters costs little, all of them everything; the lower layers' matter least",
                "at most 2 points a layer; layers 0 to 4 of 12 hardly matter",
                f"on every data set: no layer costs more than {CLEAR:g} points; the lower half costs less than the upper half",
                own, ablation(facts)),
    ]  # fmt: skip


def near_full(facts: Facts) -> tuple[str, Verdict] | None:
    ours, full = (over_data(lambda d, m=m: facts.adapter(d, m)) for m in ("adapter houlsby 48", "full"))
    if ours is None or full is None:
        return None
    share = next(r["trained %"] for r in facts.adapters if r["method"] == "adapter houlsby 48")
    return f"{ours:.2f} against {full:.2f} ({ours - full:+.2f}) at {share:.1f} %", judged(ours >= full - 0.4)


def widths(facts: Facts) -> tuple[str, Verdict] | None:
    found = complete(lambda m: over_data(lambda d: facts.test("width", d, f"width {m}")), WIDTHS)
    if len(found) < len(WIDTHS):
        return None
    values = [value for _, value in found]
    return f"{listed(found)}; spread {max(values) - min(values):.1f}", judged(max(values) - min(values) <= EQUAL)


def far_below(facts: Facts) -> tuple[str, Verdict] | None:
    norms, top, full = (over_data(lambda d, m=m: facts.adapter(d, m)) for m in ("layer-norm", "top-1", "full"))
    if norms is None or top is None or full is None:
        return None
    return f"{norms - full:+.1f}, and {top - full:+.1f}", judged(norms <= full - CLEAR, top <= full - CLEAR)


def stds(facts: Facts) -> tuple[str, Verdict] | None:
    found = dict(complete(lambda s: over_data(lambda d: facts.test("std", d, f"std {s:g}")), STDS))
    if len(found) < len(STDS):
        return None
    low = [found[std] for std in STDS if std <= 1e-2]
    high = [found[std] for std in STDS if std > 1e-2]
    words = listed([(f"{std:g}", value) for std, value in found.items()])
    return words, judged(max(low) - min(low) <= EQUAL, min(high) < found[1e-2] - EQUAL)


def ablation(facts: Facts) -> tuple[str, Verdict] | None:
    words, single, order = [], [], []
    for data, name in DATA.items():
        loss = losses(facts.own, data)
        if not loss:
            return None
        depth = 1 + max(int(span.split("-")[0]) for span in loss if "-" in span)
        worst = max(loss[f"{i}-{i}"] for i in range(depth))
        low, high = loss[f"0-{depth // 2 - 1}"], loss[f"{depth // 2}-{depth - 1}"]
        words.append(f"{name} {worst:.1f} / {low:.1f} / {high:.1f} / {loss['all']:.1f}")
        single.append(worst <= CLEAR)
        order.append(low < high)
    here = "points lost without the worst single layer / the lower half / the upper half / all: " + "; ".join(words)
    return here, judged(all(single), all(order))


# -- prefix tuning -----------------------------------------------------------------------------------------------------


def prefixes(facts: Facts) -> list[Finding]:
    study, own = "table_to_text", "claims"
    return [
        finding("at or above full fine-tuning on table-to-text with 0.1 % of the parameters", "70.3 against 68.8 BLEU (E2E)",
                "at least full fine-tuning's", study, prefix_full(facts)),
        finding("prompts at the input alone are well below", "62.2 at best against 70.3 BLEU",
                f"at least {CLEAR:g} below the prefix", study, input_only(facts)),
        finding("above full fine-tuning with few rows", "+2.9 BLEU on average over 50 to 500 rows",
                f"more than {BLEU_EQUAL:g} above on average", study, few_rows(facts)),
        finding("real words as a beginning help with few rows only", "much better with few rows, no effect with all",
                f"more than {BLEU_EQUAL:g} above random with few rows; within {BLEU_EQUAL:g} with 10,515", study,
                real_words(facts)),
        finding("length 10 is enough for table-to-text", "best at 10, then slightly worse",
                f"the lengths above 10 bring {BLEU_EQUAL:g} BLEU at most", own, text_lengths(facts)),
        finding("(the same for classification, which the paper did not measure)", "-",
                f"mean of the three data sets: the lengths above 10 bring {EQUAL:g} point at most", own, lengths(facts)),
        finding("better than full fine-tuning on kinds that were not in training",
                "WebNLG 45.3 against 26.7 BLEU (seen: 62.9 against 64.7)",
                f"more than {BLEU_EQUAL:g} above full fine-tuning on unseen kinds; partly: only loses less from seen to unseen",
                own, unseen(facts)),
    ]  # fmt: skip


def prefix_full(facts: Facts) -> tuple[str, Verdict] | None:
    words, verdicts = [], []
    for runs in ("final", "long"):
        prefix, full = facts.table(runs, "prefix 0.1 %"), facts.table(runs, "full fine-tuning")
        if prefix is not None and full is not None:
            words.append(f"{prefix:.1f} against {full:.1f} ({prefix - full:+.1f}; {runs} runs)")
            verdicts.append(prefix >= full)
    return ("; ".join(words), judged(*verdicts)) if words else None


def input_only(facts: Facts) -> tuple[str, Verdict] | None:
    prefix = facts.table("final", "prefix 0.1 %")
    found = complete(lambda n: facts.table("final", f"prompt {n}"), (10, 20, 100))
    if prefix is None or not found:
        return None
    best = max(value for _, value in found)
    return f"prompts of {listed(found)} against {prefix:.1f}", judged(best <= prefix - CLEAR)


def few_gain(facts: Facts, other: str) -> float | None:
    """BLEU of the prefix that begins as real words above another, on average over the numbers of rows that both have."""
    pairs = [(facts.table("few rows", "prefix, real words", n), facts.table("few rows", other, n)) for n in SIZES]
    gains = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    return statistics.mean(gains) if gains else None


def few_rows(facts: Facts) -> tuple[str, Verdict] | None:
    gain = few_gain(facts, "full fine-tuning")
    return None if gain is None else (f"{gain:+.1f} BLEU on average", judged(gain > BLEU_EQUAL))


def real_words(facts: Facts) -> tuple[str, Verdict] | None:
    gain = few_gain(facts, "prefix, random")
    words, drawn = facts.tunes.get("prefix 0.1 %"), facts.tunes.get("prefix, random")
    if gain is None or words is None or drawn is None:
        return None
    here = f"{gain:+.1f} BLEU on average over 50 to 500 rows; {words - drawn:+.1f} with 10,515 (dev, one seed)"
    return here, judged(gain > BLEU_EQUAL, abs(words - drawn) <= BLEU_EQUAL)


def text_lengths(facts: Facts) -> tuple[str, Verdict] | None:
    found = complete(lambda n: facts.test("text length", "e2e", f"length {n}", "smollm2"), TEXT_LENGTHS)
    return enough(found, len(TEXT_LENGTHS), BLEU_EQUAL)


def lengths(facts: Facts) -> tuple[str, Verdict] | None:
    found = complete(lambda n: over_data(lambda d: facts.test("length", d, f"length {n}")), LENGTHS)
    return enough(found, len(LENGTHS), EQUAL)


def enough(found: list[tuple[int, float]], wanted: int, tolerance: float) -> tuple[str, Verdict] | None:
    """Whether what is longer than 10 brings no more than the tolerance."""
    if len(found) < wanted:
        return None
    longer = max(value for length, value in found if length > 10)
    return listed(found), judged(longer - dict(found)[10] <= tolerance)


def unseen(facts: Facts) -> tuple[str, Verdict] | None:
    get = lambda part, name, kind: facts.test(part, "e2e, seen kinds", name, "smollm2", kind)  # noqa: E731
    own = {name: (get(part, name, "seen"), get(part, name, "unseen"))
           for part, name in (("unseen", "prefix 0.1 %"), ("unseen", "adapters 3 %"), ("unseen, full", "full"))}  # fmt: skip
    found = {name: pair for name, pair in own.items() if None not in pair}
    if not {"prefix 0.1 %", "full"} <= found.keys():
        return None
    words = "; ".join(f"{name} {new:.1f} (seen: {old:.1f})" for name, (old, new) in found.items())  # type: ignore[str-format]
    (old, new), (full_old, full_new) = found["prefix 0.1 %"], found["full"]
    if new > full_new + BLEU_EQUAL:  # type: ignore[operator]
        return words, "holds"
    return words, "partly" if old - new < full_old - full_new - BLEU_EQUAL else "does not hold"  # type: ignore[operator]
