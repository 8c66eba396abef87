"""The first steps of a deployment: the job runs, and the agent is asked whether the cluster has room."""

import math
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import structlog

from shared.messages import JsonObject
from worker.actions.deployment import (
    CapacityDeniedError,
    CapacityUnknownError,
    capacity_unreachable_error,
    check_serve_capacity,
)
from worker.actions.replica_needs import gate_options, initial_replicas
from worker.deploy.packages import DeployedPackages
from worker.deploy.plan import (
    CAPACITY_GATE,
    PROGRESS_STEP,
    SERVE_RUN,
    DeployPlan,
    DeployRun,
    call_plugin,
    set_dispatched_job,
)
from worker.lua import redis_time
from worker.platform import AgentClient, ClientError, clean_exception, error_type
from worker.plugins.requests import WHOLE_RUN
from worker.runs.model import Continue, Outcome, Reschedule, RunFailedError, Suspend
from worker.services import Services
from worker.whole_run.run import SUBMIT
from worker.workflow.capacity import CapacityWaitlist, Place, wanted_and_free
from worker.workflow.intake import begin_run
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)

Answer: TypeAlias = Literal["allowed", "skipped"]
"""What the gate says of a run that may go on; `skipped` where there is no agent to ask."""


def initialize(run: DeployRun, services: Services) -> Outcome:
    """Report the job RUNNING, unless the backend has its end already."""
    if not begin_run(run, services):
        return Suspend()
    set_dispatched_job(run, services)
    return Continue(CAPACITY_GATE)


def capacity_gate(run: DeployRun, services: Services) -> Outcome:
    """Store the plan and ask the agent. A no, or an agent that cannot be asked, ends the run FAILED.

    A run with `wait_for_capacity` plans once, and waits where the agent says no.
    """
    if services.settings.ray_address is None:
        raise RunFailedError(
            "This worker has no Ray cluster to deploy on: set RAY_ADDRESS to the cluster's head, host:port"
        )
    set_dispatched_job(run, services)
    state = run.state
    if state.capacity is not None:
        _leave_waitlist(run, services)
        return _after_gate(state.whole_run)
    if state.waits_since is None:
        planned = call_plugin(run, services, "plan", {WHOLE_RUN: True})
        whole_run = planned.pop(WHOLE_RUN, None)
        plans_nothing = whole_run is not None and "app_name" not in planned
        plan = None if plans_nothing else DeployPlan.from_json(planned)
        if plan is not None and run.message.force:
            plan = plan.forced_by(run.job)
        state = replace(state, plan=plan, whole_run=whole_run)
        services.runs.store.update_state(run, state)
    if state.plan is None:
        return _after_gate(state.whole_run)
    answer = (_ask_in_order if run.message.params.wait_for_capacity else _ask)(run, services, state.plan)
    if isinstance(answer, Reschedule):
        return answer
    services.runs.store.update_state(run, replace(run.state, capacity=answer))
    _leave_waitlist(run, services)
    text = in_language(run.message.language, Text.FITS if answer == "allowed" else Text.NOT_CHECKED)
    services.runs.events.message(run.job, text, step=PROGRESS_STEP)
    services.runs.set_progress(run, PROGRESS_STEP, 15)
    if state.whole_run is not None:
        DeployedPackages(services).add(state.plan.app_name, run.message.plugin)
    return _after_gate(state.whole_run)


def _ask(run: DeployRun, services: Services, plan: DeployPlan) -> Answer:
    """Ask the agent once; raises `CapacityDeniedError` or `CapacityUnknownError`."""
    agent_client = _agent_client(run.message.agent, run.message.tenant, services)
    actor_options, serve_options = gate_options(plan.to_json())
    try:
        check_serve_capacity(
            agent_client,
            app_name=plan.app_name,
            agent=run.message.agent,
            ray_actor_options=actor_options,
            serve_options=serve_options,
            logger=log,
        )
    except CapacityDeniedError:
        # One that waits says so once.
        if agent_client is not None and not (run.state.reported_wait and run.state.reported_wait[1]):
            language, replicas = run.message.language, initial_replicas(serve_options)
            text = wanted_and_free(language, agent_client, actor_options, replicas)
            services.runs.events.message(run.job, text, step=PROGRESS_STEP, level="warning")
        raise
    return "allowed" if agent_client else "skipped"


def _ask_in_order(run: DeployRun, services: Services, plan: DeployPlan) -> Answer | Reschedule:
    """Ask the agent for the run that has waited longest, and once more for one whose time is over.

    A run that has begun to wait goes on while the agent cannot be asked.
    """
    waitlist = _capacity_waitlist(run, services)
    place = waitlist.look(run.job, run.state.waits_since)
    wait_seconds = run.message.params.wait_for_capacity or 0.0
    left = wait_seconds - (redis_time(services.redis) - place.came_at)
    reasons: list[Any] = []
    if place.is_next or left <= 0:
        try:
            answer = _ask(run, services, plan)
        except CapacityDeniedError as denied:
            reasons = denied.reasons
        except CapacityUnknownError as unknown:
            if run.state.waits_since is None or left <= 0:
                raise
            reasons = [error_type(unknown.__cause__ or unknown)]
        else:
            if place.is_next:
                return answer
            reasons = [f"queue_position_{place.position}"]
    if left <= 0:
        raise CapacityDeniedError(reasons, f"waited {wait_seconds - left:.0f} s for it")
    _report_wait(run, services, place, reasons, left)
    # The last look is at the end of the time.
    return Reschedule(min(place.countdown, left + 0.01, services.runs.timing.max_countdown))


def _report_wait(run: DeployRun, services: Services, place: Place, reasons: list[Any], left: float) -> None:
    """A message to the user when the wait begins, its position changes, or the agent's reasons are known."""
    reported = place.position, bool(reasons)
    if run.state.reported_wait not in (reported, (place.position, True)):
        kind = Text.NO_CAPACITY if reasons else Text.WAITS_FOR_CAPACITY
        values = {"position": place.position, "left": math.ceil(left), "reasons": reasons}
        text = in_language(run.message.language, kind, **values)
        services.runs.events.message(run.job, text, step=PROGRESS_STEP)
        state = replace(run.state, waits_since=place.came_at, reported_wait=reported)
        services.runs.store.update_state(run, state)


def _leave_waitlist(run: DeployRun, services: Services) -> None:
    if run.message.params.wait_for_capacity:
        _capacity_waitlist(run, services).leave(run.job)


def _after_gate(whole_run: JsonObject | None) -> Continue:
    """An action that runs whole deploys and registers by itself."""
    return Continue(SERVE_RUN if whole_run is None else SUBMIT)


def _agent_client(agent: int, tenant: str | None, services: Services) -> AgentClient | None:
    try:
        return services.agent(agent, tenant)
    except (ClientError, OSError) as error:
        failure = capacity_unreachable_error(error)
        failure.__cause__ = clean_exception(error)
    raise failure


def _capacity_waitlist(run: DeployRun, services: Services) -> CapacityWaitlist:
    tenant = run.message.tenant or services.settings.synapse_tenant
    return CapacityWaitlist(services.redis, tenant, run.message.agent)
