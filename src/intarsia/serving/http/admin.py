"""`PUT` and `DELETE /v1/tasks/{name}`: tasks come and go over HTTP, for who holds an admin key."""

import asyncio
import errno
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from intarsia.errors import TaskError
from intarsia.serving.http.auth import admin
from intarsia.serving.http.bodies import media_type, widen
from intarsia.serving.http.errors import ApiError
from intarsia.serving.http.service import Service, Serving
from intarsia.serving.http.status import TaskCard
from intarsia.serving.library import Library

router = APIRouter(tags=["admin"], dependencies=[Depends(admin)])
FILES = ("task.json", "task.safetensors")
UPLOAD_SECONDS = 600.0
_BINARY = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": dict.fromkeys(FILES, _BINARY), "required": list(FILES)}
UPLOAD = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


@router.put("/v1/tasks/{name}", openapi_extra=UPLOAD)
async def put(name: str, request: Request, service: Serving) -> TaskCard:
    """A new task, or a new version of one: the two files of a task folder as a form with the fields task.json and
    task.safetensors. It is checked against the backbone before anyone can see it; requests that are under way finish on
    the old version."""
    library = _library(service)
    if media_type(request) != "multipart/form-data":
        raise ApiError(415, "a task comes as multipart/form-data with the files task.json and task.safetensors")
    widen(request, service.upload_bytes, UPLOAD_SECONDS)
    async with request.app.state.upload:  # one at a time: what is held in memory is one task
        description, tensors = await _files(request)
        card = await _on_disk(lambda: library.write(name, description, tensors))
    return TaskCard.of(card)


@router.delete("/v1/tasks/{name}", status_code=204)
async def delete(name: str, service: Serving) -> Response:
    """The task goes, and its folder with it; requests that are under way are answered."""
    library = _library(service)
    try:
        await _on_disk(lambda: library.delete(name))
    except TaskError as error:
        raise ApiError(404, str(error)) from None
    return Response(status_code=204)


def _library(service: Service) -> Library:
    if service.library is None:
        raise ApiError(403, "this server has no tasks folder, so its tasks cannot be changed")
    return service.library


async def _files(request: Request) -> tuple[bytes, bytes]:
    """task.json and task.safetensors of the form. Names of files are the client's, and are not looked at."""
    try:
        async with request.form(max_files=2, max_fields=0) as form:
            found = {field: await part.read() for field, part in form.multi_items() if isinstance(part, UploadFile)}
    except (MultiPartException, FormParserError, HTTPException) as error:
        if isinstance(error, ApiError):
            raise
        raise ApiError(422, "the form cannot be read; send the two files task.json and task.safetensors") from None
    if set(found) != set(FILES):
        raise ApiError(422, "the form must have two files, in the fields task.json and task.safetensors")
    return found["task.json"], found["task.safetensors"]


async def _on_disk(work: Callable[[], Any]) -> Any:
    """Runs on a thread of its own; a disk that is full or cannot be written is a 507, and the old version stays."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ApiError(507, "the disk of the tasks folder is full; nothing was changed") from None
        why = error.strerror or type(error).__name__  # without the path
        raise ApiError(507, f"the tasks folder cannot be written ({why}); nothing was changed") from None
