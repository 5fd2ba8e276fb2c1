"""`intarsia doctor`."""

from dataclasses import asdict
from typing import Annotated

import typer

from intarsia.cli import options
from intarsia.cli.output import print_json, print_table


def add(app: typer.Typer) -> None:
    app.command("doctor", help="Test the methods on a backbone: identity, gradients, padding, save and load, bf16.")(
        doctor
    )


def doctor(
    backbone: Annotated[str, typer.Option(metavar="B", help="The backbone to test.")],
    method: Annotated[
        list[str] | None, typer.Option(metavar="M", help="A method to test; may be given many times.  [default: all]")
    ] = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    from intarsia import workflow

    findings = list(workflow.examine(backbone, method, device=device))
    failed = [finding for finding in findings if finding.status == "fail"]
    if as_json:
        print_json({"backbone": backbone, "failed": len(failed), "findings": [asdict(finding) for finding in findings]})
    else:
        order = list(dict.fromkeys(finding.method for finding in findings))  # bf16 comes last, on a backbone of its own
        findings.sort(key=lambda finding: order.index(finding.method))
        rows = [[f.method, f.check, f.status, f.reason] for f in findings]
        print_table(["method", "check", "result", "reason"], rows)
    if failed:
        raise typer.Exit(1)
