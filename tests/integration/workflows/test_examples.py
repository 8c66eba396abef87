"""The example releases, each deployed on a real Ray and called as its docstring says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from shared.deferred import PENDING, POLL_KEY
from tests.integration.workflows.ray_harness import EXAMPLES, RayHarness

# The demo's test runs `digits`, and the tests of the SDK run `sdk`.
pytestmark = pytest.mark.examples
RELEASES = sorted(folder.name for folder in EXAMPLES.glob("serve-*"))


@pytest.fixture(scope="module")
def examples(harness: RayHarness) -> Iterator[RayHarness]:
    """All examples, running."""
    jobs = {release: harness.deploy(release) for release in RELEASES}
    ends = {release: harness.wait_for_end(job, 300) for release, job in jobs.items()}
    assert {release: end["result"] for release, end in ends.items() if end["status"] != "SUCCEEDED"} == {}
    yield harness
    with ThreadPoolExecutor(len(RELEASES)) as pool:
        list(pool.map(harness.delete_application, RELEASES))


def test_a_class_answers(examples: RayHarness) -> None:
    assert examples.call_application("serve-class@1.0.0", {"text": "a great day"}) == {"label": "positive"}
    assert examples.call_application("serve-class@1.0.0", {"text": "a day"}) == {"label": "neutral"}


def test_a_function_answers(examples: RayHarness) -> None:
    assert examples.call_application("serve-function@1.0.0", {"text": "one two three"}) == {"words": 3}


def test_fastapi_routes_and_validates(examples: RayHarness) -> None:
    url = examples.application_url("serve-fastapi@1.0.0")

    assert httpx.post(f"{url}/", json={"text": "so bad"}).json() == {"label": "negative"}
    assert httpx.post(f"{url}/", json={"text": ""}).status_code == 422
    assert httpx.get(f"{url}/labels").json() == ["positive", "negative", "neutral"]


def test_starlette_chooses_status_and_headers(examples: RayHarness) -> None:
    url = examples.application_url("serve-starlette@1.0.0")

    answer = httpx.post(f"{url}/", json={"text": "one two"})
    assert (answer.json(), answer.headers["X-Letters"]) == ({"words": 2}, "7")
    assert httpx.post(f"{url}/", json={}).status_code == 422


def test_a_composition_asks_two_models(examples: RayHarness) -> None:
    answer = examples.call_application("serve-composition@1.0.0", {"text": "good"})

    assert answer == {"sentiment": "positive", "length": "short"}


def test_a_graph_passes_results_on(examples: RayHarness) -> None:
    answer = examples.call_application("serve-graph@1.0.0", {"text": "Great! But poor."})

    assert answer == {"label": "negative", "votes": [2, -2]}


def test_autoscaling_follows_the_requests(examples: RayHarness) -> None:
    replicas = set()
    with ThreadPoolExecutor(8) as pool:

        def scaled() -> bool:
            answers = pool.map(lambda _: examples.call_application("serve-autoscaling@1.0.0", {}), range(16))
            replicas.update(answer["replica"] for answer in answers)
            return len(replicas) > 1

        examples.wait_for(scaled, "a second replica", 120)


def test_batching_answers_requests_together(examples: RayHarness) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = ["word " * count for count in range(1, 9)]
        answers = list(
            pool.map(lambda text: examples.call_application("serve-batching@1.0.0", {"text": text}), texts)
        )

    assert [answer["words"] for answer in answers] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert max(answer["batch"] for answer in answers) > 1


def test_multiplexing_keeps_the_models_of_late(examples: RayHarness) -> None:
    url = examples.application_url("serve-multiplexing@1.0.0")

    def ask(model: int) -> str:
        headers = {"serve_multiplexed_model_id": str(model)}
        answer = httpx.post(f"{url}/", json={"text": "hello"}, headers=headers, timeout=30).json()
        return f"{answer['greeting']} ({answer['loads']})"

    # Two are kept, and the one that was used last is not loaded again
    assert [ask(model) for model in (1, 2, 1, 3, 1, 2)] == [
        "Model 1 says: hello (1)",
        "Model 2 says: hello (2)",
        "Model 1 says: hello (2)",
        "Model 3 says: hello (3)",
        "Model 1 says: hello (3)",
        "Model 2 says: hello (4)",
    ]


def test_a_deferred_result_is_asked_for_again(examples: RayHarness) -> None:
    ticket = examples.call_application("serve-deferred@1.0.0", {"seconds": 1.5})
    assert ticket["status"] == PENDING

    def answer() -> object:
        return examples.call_application("serve-deferred@1.0.0", {POLL_KEY: ticket["ticket"]})

    examples.wait_for(lambda: answer() == {"waited": 1.5}, "the result")


def test_a_stream_comes_in_parts(examples: RayHarness) -> None:
    url = examples.application_url("serve-streaming@1.0.0")

    with httpx.stream("POST", f"{url}/", json={"text": "one two three"}, timeout=30) as answer:
        parts = list(answer.iter_raw())

    assert b"".join(parts) == b"one\ntwo\nthree\n"
    assert len(parts) > 1
