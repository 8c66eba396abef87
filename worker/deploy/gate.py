"""The capacity gate: the agent is asked once, right before the submission."""

import structlog

from worker.actions.deployment import capacity_unreachable_error, check_serve_capacity
from worker.deploy.plan import CAPACITY, PLAN, PROGRESS, SERVE_RUN, call, deploy_message, tell_room
from worker.platform import AgentClient, ClientError, clean_exception
from worker.runs.model import Continue, Outcome, Run, RunFailedError
from worker.services import Services

log = structlog.get_logger(__name__)


def capacity_gate(run: Run, services: Services) -> Outcome:
    """Plan, ask, go on. What the gate refuses, and an agent that cannot be asked, end the run."""
    if services.settings.ray_address is None:
        raise RunFailedError(
            "This worker has no Ray cluster to deploy on: set RAY_ADDRESS to the cluster's head, host:port"
        )
    tell_room(run, services)
    if CAPACITY in run.findings:
        return Continue(SERVE_RUN)
    message = deploy_message(run)
    plan = call(run, services, "plan", None)
    services.runs.store.note(run.job, PLAN, plan)
    agent_client = _agent_client(message.agent, message.tenant, services)
    check_serve_capacity(
        agent_client,
        app_name=plan["app_name"],
        agent=message.agent,
        ray_actor_options=plan["ray_actor_options"],
        serve_options=plan["serve_options"],
        logger=log,
    )
    services.runs.store.note(run.job, CAPACITY, "allowed" if agent_client else "skipped")
    said = "The cluster has room." if agent_client else "Capacity was not checked: there is no agent to ask."
    services.runs.events.message(run.job, said, step=PROGRESS)
    services.runs.advance(run, PROGRESS, 15)
    return Continue(SERVE_RUN)


def _agent_client(agent: int, tenant: str | None, services: Services) -> AgentClient | None:
    try:
        return services.agent(agent, tenant)
    except (ClientError, OSError) as error:
        failure = capacity_unreachable_error(error)
        failure.__cause__ = clean_exception(error)
    raise failure
