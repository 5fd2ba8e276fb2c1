"""Bad settings of generation, templates, verbalisers and prompts: status 2 and one line, as in test_cli_bad_input."""

import pytest
from refusal import refused

# name: (arguments after `train` with the tiny files, a part of the message)
PROMPTS = {
    "unknown kind by its flag": (["--kind", "genration"], "data.kind"),
    "generation over a model that writes nothing": (["--kind", "generation"], "no language-model head"),
    "labels as words without the kind": (["--set", "data.text_to_text=true"], "set kind to generation"),
    "words for labels that are not generated": (["--set", "data.label_words={pos: good}"], "text_to_text"),
    "settings of generation without it": (["--set", "generation.beams=4"], "is for data.kind generation"),
    "a target's length without a target": (["--set", "train.target_length=4"], "train.target_length is for"),
    "a loss by sentence without a sentence": (["--set", "head.loss=sentence"], "head.loss is for"),
    "unknown setting of generation": (["--set", "generation.beam=4"], "did you mean 'generation.beams'?"),
    "a template that is not closed": (["--template", "{text"], "template, character 1"),
    "a template of no column": (["--template", "{prompt}"], "names no column"),
    "a template of another column": (["--template", "{sentence}"], "no column 'sentence'"),
    "slots that nobody fills": (
        ["--template", "{prompt:3} {text}"],
        "3 prompt slots, which method adapter does not fill",
    ),
    "a verbaliser of one word": (["--set", "head.verbaliser=[good]"], "a word for each of the 2 labels"),
    "a verbaliser of unknown labels": (["--set", "head.verbaliser={pos: good, nag: bad}"], "look at 'neg'"),
    "a verbaliser without a language model": (
        ["--set", "head.verbaliser=[bad, good]", "--template", "{text} {mask}"],
        "would be random",
    ),
    "slots of another number": (
        ["--template", "{prompt:3} {text}", "--method", "prompt", "--set", "method.place=template"],
        "method.length is 20, and the template has 3",
    ),
    "no slots": (["--method", "ptuning", "--set", "method.place=template"], "the template has 0"),
    "a prompt longer than the backbone": (["--method", "prompt", "--set", "method.length=40"], "lower method.length"),
    "rows longer than a prompt leaves room for": (
        ["--method", "prompt", "--set", "train.max_length=20"],
        "of which the prompt takes 20",
    ),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_bad_settings_of_prompts_are_one_line(cli, backbone, files, tmp_path, monkeypatch, case):
    more, fragment = PROMPTS[case]
    monkeypatch.chdir(tmp_path)
    method = () if "--method" in more else ("--method", "adapter")
    argv = ["train", "--backbone", backbone, "--train", files["train"], *method, "--out", "out", *more]
    refused(cli, tmp_path, argv, fragment)


# name: (arguments after a good `train` command of generation over a decoder, a part of the message)
GENERATION = {
    "a metric of another kind": (["--set", "train.metric=accuracy"], "must be one of loss, bleu"),
    "no beams": (["--set", "generation.beams=0"], "beams must be at least 1"),
    "half a beam": (["--set", "generation.beams=1.5"], "generation.beams"),
    "a share above 1": (["--set", "generation.top_p=1.5"], "top_p"),
    "an unknown tokenisation": (["--set", "generation.tokenize=13b"], "did you mean '13a'"),
    "more new tokens than places": (["--set", "generation.max_new_tokens=30"], "places for 16"),
    "a target longer than the row": (["--set", "train.target_length=31"], "max_length at least 33"),
    "a target of one token": (["--set", "train.target_length=1"], "train.target_length"),
    "a mask": (["--template", "{text} {mask}"], "{mask}"),
    "a verbaliser": (["--set", "head.verbaliser=[bad, good]"], "head.verbaliser is for classification"),
    "a prompt behind the text": (
        ["--method", "prompt", "--set", "method.length=2", "--set", "method.place=end"],
        "give 'start'",
    ),
    "two labels of one word": (
        ["--set", "data.text_to_text=true", "--set", "data.label_words={pos: a, neg: a}"],
        "both be generated as 'a'",
    ),
    "a word for an unknown label": (
        ["--set", "data.text_to_text=true", "--set", "data.label_words={positive: a}"],
        "'positive'",
    ),
}


@pytest.mark.parametrize("case", GENERATION)
def test_bad_settings_of_generation_are_one_line(cli, decoder, files, tmp_path, monkeypatch, case):
    more, fragment = GENERATION[case]
    monkeypatch.chdir(tmp_path)
    given = (
        "--backbone",
        decoder,
        "--train",
        files["train"],
        "--kind",
        "generation",
        "--method",
        "lora",
        "--out",
        "out",
    )
    refused(cli, tmp_path, ["train", *given, "--text-columns", "text", "--label-column", "label", *more], fragment)
