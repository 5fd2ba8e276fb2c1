"""A request's texts to the tokens of its task."""

from __future__ import annotations

import json
from typing import Any

from intarsia.errors import IntarsiaError
from intarsia.rows import Row, Tokens
from intarsia.serving.jobs import Job
from intarsia.serving.requests import BadRequest, Classify, Generate, Tag
from intarsia.serving.versions import Version

WANTED = {"generation": Generate, "token-classification": Tag}
PLACES = {
    Generate: "POST /v1/completions",
    Tag: "POST /v1/tag",
    Classify: "POST /v1/classify",
}


def check_kind(request: Classify | Tag | Generate, version: Version) -> None:
    """BadRequest where the task answers other questions."""
    wanted = WANTED.get(version.kind, Classify)
    if not isinstance(request, wanted):
        raise BadRequest(f"task {version.name!r} is of kind {version.kind}; ask it through {PLACES[wanted]}")


def read(job: Job, tokens: Tokens) -> Row:
    """The row. BadRequest where the task cannot take the texts."""
    request, version = job.request, job.version
    try:
        if isinstance(request, Generate):
            return _prompt(request, version, tokens)
        assert version is not None
        return version.reader.read(request.texts if isinstance(request, Classify) else request.words)
    except BadRequest:
        raise
    except IntarsiaError as error:
        raise BadRequest(str(error)) from None


def _prompt(request: Generate, version: Version | None, tokens: Tokens) -> Row:
    if version is None:
        return Row(_plain(request, tokens))
    prompt = request.prompt
    if request.chat is not None:
        said = [message["content"] for message in request.chat if message.get("role") == "user"]
        if not said:
            raise BadRequest("a chat with a task needs a message of the user, which the task reads")
        prompt = said[-1]
    columns = version.reader.columns
    if len(columns) == 1:
        return version.reader.read((prompt,))
    try:
        given = json.loads(prompt)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or set(given) != set(columns) or not all(isinstance(v, str) for v in given.values()):
        raise BadRequest(
            f"task {version.name!r} reads several texts; send the prompt as a JSON object with {', '.join(columns)}"
        )
    return version.reader.read(tuple(given[column] for column in columns))


def _plain(request: Generate, tokens: Tokens) -> list[int]:
    tokenizer: Any = tokens.tokenizer
    if request.chat is not None:
        if not getattr(tokenizer, "chat_template", None):
            raise BadRequest("the backbone's tokenizer has no chat template; send the text to POST /v1/completions")
        try:
            ids = tokenizer.apply_chat_template(list(request.chat), add_generation_prompt=True, tokenize=True)
        except Exception as error:  # noqa: BLE001 - a template of the model's author may raise whatever it likes
            raise BadRequest(
                f"the chat template refuses these messages: {' '.join(str(error).split())[:200]}"
            ) from None
        return list(ids["input_ids"] if hasattr(ids, "keys") else ids)
    ids = list(tokenizer(request.prompt)["input_ids"])
    if not ids:
        raise BadRequest("the prompt is empty; send at least one word")
    return ids
