"""What nobody thought of: requests made from our own OpenAPI description, right and wrong, against a fake engine."""

import json

import pytest
from hypothesis import HealthCheck, settings

from intarsia.serving.http import create_app
from serving.fake_engine import CARDS, FakeEngine

schemathesis = pytest.importorskip("schemathesis", reason="the fuzzer is not installed (extra dev)")


def description(app):
    """Ours, with the tasks' names and versions filled in: names out of the blue would all end at the first 404."""
    said = json.loads(json.dumps(app.openapi()))
    schemas, names = said["components"]["schemas"], {"enum": [card.name for card in CARDS]}
    filled = {"task": names, "version": {"enum": [card.version for card in CARDS]}}
    schemas["Texts"]["properties"]["task"] = {"anyOf": [names, {"type": "array", "items": names, "minItems": 1}]}
    for request in ("CompletionRequest", "ChatRequest"):
        schemas[request]["properties"]["model"] = names
    for path, methods in said["paths"].items():
        for method in methods.values() if "{task}" in path else ():
            for parameter in method["parameters"]:
                parameter["schema"] = filled.get(parameter["name"], parameter["schema"])
    return said


application = create_app(FakeEngine(), None)
schema = schemathesis.openapi.from_dict(description(application))
schema.app = application
# A description cannot say all: that a task has two columns, say, or that a shape goes with its data.
positive_data_acceptance = schemathesis.checks.CHECKS.get_one("positive_data_acceptance")


@schema.parametrize()
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_description_knows(case):
    """No 500, and each status, content type and body as described."""
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
