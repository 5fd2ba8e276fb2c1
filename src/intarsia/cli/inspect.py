"""`intarsia inspect`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from intarsia.cli import options
from intarsia.cli.output import number, print_json, print_table, size


def add(app: typer.Typer) -> None:
    app.command("inspect", help="Show a task folder's tensors, or a backbone's sites; sizes and fingerprints.")(inspect)


def inspect(
    target: Annotated[
        str, typer.Argument(metavar="TASK_DIR|BACKBONE", help="A task folder, or a backbone's name or folder.")
    ],
    as_json: options.AsJson = False,
) -> None:
    from intarsia.workflow.inspection import describe

    found = describe(target)
    if as_json:
        print_json(found)
        return
    if found["kind"] == "task":
        _print_task(found)
    else:
        _print_backbone(found)


def _print_task(found: Mapping[str, Any]) -> None:
    head, backbone = found["head"], found["backbone"]
    method = {key: value for key, value in found["method"].items() if key != "name"}
    rows = [
        ["task", found["name"]],
        ["content", found["content"][:16]],
        [
            "backbone",
            f"{backbone.get('name')} ({backbone.get('model_type')}, fingerprint {backbone.get('fingerprint')})",
        ],
        ["method", found["method"]["name"]],
        *([f"  {key}", _plain(value)] for key, value in method.items()),
        ["head", f"{head.get('kind')}, pooling {head.get('pooling')}" if head else "none"],
        ["labels", _plain(head.get("labels", ()))],
        ["parameters", number(found["parameters"])],
        ["size on disk", size(found["bytes"])],
        *([key, number(value)] for key, value in found["metrics"].items()),
    ]
    print_table(["", ""], rows)
    print()
    tensors = found["tensors"].items()
    print_table(["tensor", "shape", "dtype"], [[name, _plain(t["shape"]), t["dtype"]] for name, t in tensors])
    if found.get("words_missing"):
        print(f"\nthe words nearest to the prompt need its backbone: {found['words_missing']}")
    elif found.get("words"):
        print()
        near = [[f"{one['word']} {one['cosine']:.2f}" for one in row] for row in found["words"]]
        print_table(
            ["virtual token", "nearest words (cosine)"], [[str(i), "  ".join(row)] for i, row in enumerate(near)]
        )


def _print_backbone(found: Mapping[str, Any]) -> None:
    rows = [
        ["backbone", found["name"]],
        ["family", f"{found['model_type']} ({found['stacks']})"],
        ["hidden width", number(found["hidden"])],
        ["longest text", f"{found['max_length']:,} tokens"],
        ["parameters", number(found["parameters"])],
        ["fingerprint", found["fingerprint"]],
        ["sites", ", ".join(f"{count} {role}" for role, count in found["roles"].items())],
    ]
    print_table(["", ""], rows)
    print()
    # The parameters themselves are sites for full fine-tuning; as a list they only hide the others.
    shown = [site for site in found["sites"] if site["role"] not in ("weight", "bias")]
    print_table(["site", "module", "width"], [[site["key"], site["module"], str(site["width"])] for site in shown])


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
