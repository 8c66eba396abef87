"""The waiting room of those who need what a run deploys."""

from shared.messages import DeployMessage
from worker.deploy.messages import deploy_message
from worker.pre_processor.names import RoomName
from worker.pre_processor.room import Room
from worker.runs.model import Run
from worker.services import Services


def room_of(message: DeployMessage, services: Services) -> RoomName:
    """Where runs wait for what `message` deploys."""
    code, _, version = message.plugin.partition("@")
    return RoomName(message.tenant or services.settings.synapse_tenant or "", message.agent, code, version)


def alert_room(message: DeployMessage, services: Services) -> None:
    """The message was read, which says no more than that something may have come of a dispatch."""
    Room(services.redis, room_of(message, services)).hear()


def tell_room(run: Run, services: Services) -> None:
    """The deployment has begun: a dispatch whose dispatcher died before it knew the job is not lost."""
    Room(services.redis, room_of(deploy_message(run), services)).adopt(run.job)
