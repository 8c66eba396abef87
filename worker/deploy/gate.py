"""The first steps of a deployment: the job runs, and the agent is asked once whether the cluster has room."""

from dataclasses import replace
from typing import Literal

import structlog

from worker.actions.deployment import capacity_unreachable_error, check_serve_capacity
from worker.actions.replica_needs import gate_options
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
from worker.runs.model import Continue, Outcome, RunFailedError, Suspend
from worker.services import Services
from worker.workflow.intake import begin_run

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
        return Continue(SERVE_RUN)
    message = run.message
    plan = DeployPlan.from_json(call_plugin(run, services, "plan", None))
    services.runs.store.update_state(run, replace(run.state, plan=plan))
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
    text = "The cluster has room." if agent_client else "Capacity was not checked: there is no agent to ask."
    services.runs.events.message(run.job, text, step=PROGRESS_STEP)
    services.runs.set_progress(run, PROGRESS_STEP, 15)
    return Continue(SERVE_RUN)


def _agent_client(agent: int, tenant: str | None, services: Services) -> AgentClient | None:
    try:
        return services.agent(agent, tenant)
    except (ClientError, OSError) as error:
        failure = capacity_unreachable_error(error)
        failure.__cause__ = clean_exception(error)
    raise failure
