"""What is sent to a plugin's host."""

import json

from worker.plugins import (
    ActionRequest,
    ClientAccess,
)


def test_request_is_the_same_after_json() -> None:
    access = ClientAccess("http://b", "token", "tenant", "http://a")
    request = ActionRequest("c@1", "to_task", "p.C", {"a": 1}, {"E": "1"}, "42", clients=access)
    assert ActionRequest.from_json(request.to_json()) == request
    assert ActionRequest.from_json(ActionRequest("c@1", "a", "p.C").to_json()).clients is None
    json.loads(request.to_json())


def test_token_is_not_in_the_repr(access: ClientAccess) -> None:
    assert "hush" not in repr(ClientAccess(host="http://b", token="hush"))
