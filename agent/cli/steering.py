"""The commands that steer: hold, release, pause, resume."""

from __future__ import annotations

from agent.cli.output import Answer, say, shown
from agent.cli.words import Call, person


async def hold(call: Call) -> Answer:
    """Keeps every job off a document."""
    given = call.given
    async with call.working() as agent:
        held = await agent.operations.hold(
            given.database, given.collection, given.id, requested_by=person(), reason=given.reason
        )
    text = f"held: {held['database']}.{held['collection']} {shown(held['id'])}: no job touches it until it is released"
    return Answer(0, held, lambda to: say(to, text))


async def release(call: Call) -> Answer:
    """Ends a hold."""
    given = call.given
    async with call.working() as agent:
        released = await agent.operations.release(
            given.database, given.collection, given.id, requested_by=person(), reason=given.reason
        )
    text = f"released: {released['database']}.{released['collection']} {shown(released['id'])}"
    return Answer(0, released, lambda to: say(to, text))


async def pause(call: Call) -> Answer:
    """Stops the clock."""
    async with call.working() as agent:
        paused = await agent.operations.pause(call.given.job, requested_by=person())
    what = call.given.job or "everything"
    return Answer(0, paused, lambda to: say(to, f"paused: {what}, on every replica, until it is resumed"))


async def resume(call: Call) -> Answer:
    """Lets the clock go on."""
    async with call.working() as agent:
        resumed = await agent.operations.resume(call.given.job, requested_by=person())
        everything = (await agent.operations.status())["paused"]
    what = call.given.job or "everything"
    also = "; but everything is paused: maintenance-agent resume" if everything else ""
    return Answer(0, resumed, lambda to: say(to, f"resumed: {what}{also}"))
