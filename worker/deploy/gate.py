"""The first steps of a deployment: the job runs, and the agent is asked once whether the cluster has room."""

from dataclasses import replace
from typing import Literal

import structlog

from shared.messages import JsonObject
from worker.actions.deployment import capacity_unreachable_error, check_serve_capacity
from worker.actions.replica_needs import gate_options
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
from worker.platform import AgentClient, ClientError, clean_exception
from worker.plugins.requests import WHOLE_RUN
from worker.runs.model import Continue, Outcome, RunFailedError, Suspend
from worker.services import Services
from worker.whole_run.run import SUBMIT
from worker.workflow.intake import begin_run
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)


def initialize(run: DeployRun, services: Services) -> Outcome:
    """Report the job RUNNING, unless the backend has its end already."""
    if not begin_run(run, services):
        return Suspend()
    set_dispatched_job(run, services)
    return Continue(CAPACITY_GATE)


def capacity_gate(run: DeployRun, services: Services) -> Outcome:
    """Store the plan and ask the agent. A no, or an agent that cannot be asked, ends the run FAILED."""
    if services.settings.ray_address is None:
        raise RunFailedError(
            "This worker has no Ray cluster to deploy on: set RAY_ADDRESS to the cluster's head, host:port"
        )
    set_dispatched_job(run, services)
    if run.state.capacity is not None:
        return _after_gate(run.state.whole_run)
    message = run.message
    planned = call_plugin(run, services, "plan", {WHOLE_RUN: True})
    whole_run = planned.pop(WHOLE_RUN, None)
    plans_nothing = whole_run is not None and "app_name" not in planned
    plan = None if plans_nothing else DeployPlan.from_json(planned)
    services.runs.store.update_state(run, replace(run.state, plan=plan, whole_run=whole_run))
    if plan is None:
        return _after_gate(whole_run)
    agent_client = _agent_client(message.agent, message.tenant, services)
    actor_options, serve_options = gate_options(plan.to_json())
    check_serve_capacity(
        agent_client,
        app_name=plan.app_name,
        agent=message.agent,
        ray_actor_options=actor_options,
        serve_options=serve_options,
        logger=log,
    )
    capacity: Literal["allowed", "skipped"] = "allowed" if agent_client else "skipped"
    services.runs.store.update_state(run, replace(run.state, capacity=capacity))
    text = in_language(message.language, Text.FITS if agent_client else Text.NOT_CHECKED)
    services.runs.events.message(run.job, text, step=PROGRESS_STEP)
    services.runs.set_progress(run, PROGRESS_STEP, 15)
    if whole_run is not None:
        DeployedPackages(services).add(plan.app_name, message.plugin)
    return _after_gate(whole_run)


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
