"""`intarsia serve`."""

from pathlib import Path
from typing import Annotated

import typer

from intarsia.cli import options
from intarsia.errors import ConfigError


def add(app: typer.Typer) -> None:
    app.command("serve", help="Serve a folder of tasks over HTTP from one backbone, and watch the folder.")(serve)


def serve(
    backbone: Annotated[
        str, typer.Option(metavar="B", help="embedded:minilm, embedded:smollm2, a model folder, or a hub name.")
    ],
    tasks: Annotated[
        Path,
        typer.Option(
            parser=options.path,
            metavar="DIR",
            help="Task folders, each a task by its folder's name; watched for changes.",
        ),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="API keys, one `infer:KEY` or `admin:KEY` a line.  [default: open, no admin]",
        ),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(min=1, metavar="MB", help="Task tensors on the device; more are paged.  [default: no limit]"),
    ] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running requests get to finish at the end.")] = 30.0,
    processes: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Processes that speak HTTP before the one with the model; 0: that one does.  [default: 0 on a CPU, else a "
            "quarter of the cores, at most 4]",
        ),
    ] = None,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Log the texts of requests.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    _extra()
    from intarsia.serving.http.server import serve_folder

    serve_folder(
        backbone,
        tasks,
        host=host,
        port=port,
        keys=keys,
        capacity=None if capacity is None else capacity * 1_000_000,
        grace=grace,
        processes=processes,
        log_texts=log_texts,
        dtype=dtype,
        device=device,
    )


def _extra() -> None:
    """Says in one line what is missing, before anything slow happens."""
    from importlib.util import find_spec

    missing = [
        name for name in ("fastapi", "uvicorn", "prometheus_client", "python_multipart") if find_spec(name) is None
    ]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}, not installed here; run: pip install 'intarsia[serve]'")
