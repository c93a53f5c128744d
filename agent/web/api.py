"""The API under /api/maintenance, and the reload: handlers that parse, call and serialise, and the table of them."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from agent.web import models
from agent.web.contract import Handle, Json, PassHandle
from agent.web.endpoints import Call, Endpoint, Reply, respond
from agent.web.problems import ProblemError

BASE: Final = "/api/maintenance"
JOB: Final = f"{BASE}/jobs/{{job:{models.JOB_PATTERN}}}"
RUN: Final = f"{BASE}/runs/{{id:{models.RUN_PATTERN}}}"


# ------------------------------------------------------------------------------------------------------------- reading


async def get_status(call: Call) -> web.Response:
    """The service at a glance."""
    return respond(await call.context.operations.status())


async def list_jobs(call: Call) -> web.Response:
    """Every job."""
    return respond({"jobs": await call.context.operations.jobs()})


async def get_job(call: Call) -> web.Response:
    """One job."""
    return respond(await call.context.operations.job(call.part("job")))


async def explain(call: Call) -> web.Response:
    """Why a job would touch a document, or not."""
    query: models.ExplainQuery = call.query
    return respond(await call.context.operations.explain(call.part("job"), query.id))


async def list_runs(call: Call) -> web.Response:
    """A page of runs."""
    query: models.RunsQuery = call.query
    runs, following = await call.context.operations.runs(
        job=query.job,
        pass_id=query.pass_id,
        outcome=query.outcome,
        trigger=query.trigger,
        before=query.before,
        limit=query.limit,
    )
    return respond({"runs": runs, "next": following})


async def get_run(call: Call) -> web.Response:
    """One run."""
    return respond(await call.context.operations.run(call.part("id")))


async def list_items(call: Call) -> web.Response:
    """A page of a run's items."""
    query: models.ItemsQuery = call.query
    items, following = await call.context.operations.items(call.part("id"), after=query.after, limit=query.limit)
    return respond({"items": items, "next": following})


# ------------------------------------------------------------------------------------------------------------- running


async def run_all(call: Call) -> web.Response:
    """Starts a pass."""
    body: models.RunRequest = call.body
    started = await call.context.operations.run_pass(
        trigger="manual", requested_by=call.name, dry_run=body.dry_run, accept=frozenset(body.accept)
    )
    return await _of_pass(started, body)


async def run_job(call: Call) -> web.Response:
    """Starts a job."""
    body: models.RunRequest = call.body
    handle = await call.context.operations.run_job(
        call.part("job"),
        trigger="manual",
        requested_by=call.name,
        dry_run=body.dry_run,
        accept=frozenset(body.accept),
    )
    return await _of_run(call, handle, body)


async def apply(call: Call) -> web.Response:
    """Applies a plan."""
    body: models.WaitRequest = call.body
    return await _of_pass(await call.context.operations.apply(call.part("id"), requested_by=call.name), body)


async def restore(call: Call) -> web.Response:
    """Undoes a run."""
    body: models.RestoreRequest = call.body
    handle = await call.context.operations.restore(call.part("id"), item=body.item, requested_by=call.name)
    return await _of_run(call, handle, body)


async def cancel(call: Call) -> web.Response:
    """Asks a run to end."""
    return respond(await call.context.operations.cancel(call.part("id"), requested_by=call.name), status=202)


async def _of_run(call: Call, handle: Handle, body: models.WaitRequest) -> web.Response:
    """The run, once it has ended or the caller has waited long enough."""
    ended = await handle.wait(body.seconds) if body.seconds else False
    headers = {"Location": f"{call.context.base_path}{BASE}/runs/{handle.id}"}
    return respond(handle.record(), status=200 if ended else 202, headers=headers)


async def _of_pass(started: PassHandle, body: models.WaitRequest) -> web.Response:
    """The pass, once it has ended or the caller has waited long enough."""
    ended = await started.wait(body.seconds) if body.seconds else False
    return respond({"pass": started.id, "runs": started.runs()}, status=200 if ended else 202)


# ------------------------------------------------------------------------------------------------------------ steering


async def pause_all(call: Call) -> web.Response:
    """Stops the clock."""
    return respond(await call.context.operations.pause(None, requested_by=call.name))


async def resume_all(call: Call) -> web.Response:
    """Lets the clock go on."""
    return respond(await call.context.operations.resume(None, requested_by=call.name))


async def pause_job(call: Call) -> web.Response:
    """Stops the clock of a job."""
    return respond(await call.context.operations.pause(call.part("job"), requested_by=call.name))


async def resume_job(call: Call) -> web.Response:
    """Lets the clock of a job go on."""
    return respond(await call.context.operations.resume(call.part("job"), requested_by=call.name))


async def hold(call: Call) -> web.Response:
    """Puts a hold on a document."""
    return respond(await call.context.operations.hold(*_document(call), requested_by=call.name, reason=_reason(call)))


async def release(call: Call) -> web.Response:
    """Takes a hold off a document."""
    return respond(
        await call.context.operations.release(*_document(call), requested_by=call.name, reason=_reason(call))
    )


def _document(call: Call) -> tuple[str | None, str, str]:
    body: models.HoldRequest = call.body
    if not body.possible:
        raise ProblemError("not-found", "There is no such collection: MongoDB has no names of this length.")
    return body.database, body.collection, body.id


def _reason(call: Call) -> str | None:
    body: models.HoldRequest = call.body
    return body.reason


async def reload(call: Call) -> web.Response:
    """Loads the configuration again."""
    result: Json = await call.context.operations.reload(requested_by=call.name)
    return respond(result)


# ----------------------------------------------------------------------------------------------------------- the table

_ONE_RUN: Final = {
    200: Reply("It ended within the wait, whatever its outcome.", models.Run),
    202: Reply("It was started; `Location` says where to look.", models.Run),
}
_ONE_PASS: Final = {
    200: Reply("All of its runs ended within the wait, whatever their outcomes.", models.Pass),
    202: Reply("It was started.", models.Pass),
}

ENDPOINTS: Final = (
    Endpoint(
        "GET", f"{BASE}/status", get_status, "The service at a glance", {200: Reply("It.", models.Status)}, (503,)
    ),
    Endpoint("GET", f"{BASE}/jobs", list_jobs, "All jobs", {200: Reply("They.", models.Jobs)}, (503,)),
    Endpoint("GET", JOB, get_job, "One job", {200: Reply("It.", models.Job)}, (404, 503)),
    Endpoint(
        "GET",
        f"{JOB}/explain",
        explain,
        "Why a job would touch a document, or not",
        {200: Reply("Each condition of the rule, and what it says of the document.", models.Explanation)},
        (404, 409, 503),
        query=models.ExplainQuery,
    ),
    Endpoint(
        "GET",
        f"{BASE}/runs",
        list_runs,
        "The history, the newest first",
        {200: Reply("A page of runs.", models.Runs)},
        (404, 503),
        query=models.RunsQuery,
    ),
    Endpoint("GET", RUN, get_run, "One run", {200: Reply("It.", models.Run)}, (404, 503)),
    Endpoint(
        "GET",
        f"{RUN}/items",
        list_items,
        "What a run planned or changed",
        {200: Reply("A page of items.", models.Items)},
        (404, 503),
        query=models.ItemsQuery,
    ),
    Endpoint(
        "POST",
        f"{BASE}/run",
        run_all,
        "Run all enabled jobs as one pass",
        _ONE_PASS,
        (409, 503),
        body=models.RunRequest,
    ),
    Endpoint("POST", f"{JOB}/run", run_job, "Run one job", _ONE_RUN, (404, 409, 503), body=models.RunRequest),
    Endpoint(
        "POST",
        f"{RUN}/apply",
        apply,
        "Apply exactly the plan of a dry run, or of a dry pass",
        _ONE_PASS,
        (404, 409, 503),
        body=models.WaitRequest,
    ),
    Endpoint(
        "POST",
        f"{RUN}/restore",
        restore,
        "Undo a run, or one item of it, and hold what was restored",
        _ONE_RUN,
        (404, 409, 503),
        body=models.RestoreRequest,
    ),
    Endpoint(
        "POST",
        f"{RUN}/cancel",
        cancel,
        "Ask a run to end between two batches",
        {202: Reply("It was asked to.", models.Run)},
        (404, 409, 503),
    ),
    Endpoint(
        "POST",
        f"{BASE}/pause",
        pause_all,
        "Stop the clock, on every replica, until it is resumed",
        {200: Reply("It stands.", models.Paused)},
        (503,),
    ),
    Endpoint(
        "POST", f"{BASE}/resume", resume_all, "Let the clock go on", {200: Reply("It goes.", models.Paused)}, (503,)
    ),
    Endpoint(
        "POST",
        f"{JOB}/pause",
        pause_job,
        "Stop the clock of one job",
        {200: Reply("It stands.", models.Paused)},
        (404, 503),
    ),
    Endpoint(
        "POST",
        f"{JOB}/resume",
        resume_job,
        "Let the clock of one job go on",
        {200: Reply("It goes.", models.Paused)},
        (404, 503),
    ),
    Endpoint(
        "POST",
        f"{BASE}/hold",
        hold,
        "Keep every job off a document",
        {200: Reply("The hold.", models.Held)},
        (404, 409, 503),
        body=models.HoldRequest,
    ),
    Endpoint(
        "POST",
        f"{BASE}/release",
        release,
        "Take a hold off a document",
        {200: Reply("The document.", models.Held)},
        (404, 409, 503),
        body=models.HoldRequest,
    ),
    Endpoint(
        "POST",
        "/-/reload",
        reload,
        "Load the configuration again; a bad one leaves the running one in place",
        {200: Reply("It was loaded.", models.Reloaded)},
        (409, 503),
    ),
)
