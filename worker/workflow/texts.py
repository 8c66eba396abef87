"""What the worker's own steps say to users, in English and Korean. The contract's errors stay English."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Text(StrEnum):
    """The messages in English; `{name}` is put in."""

    UNKNOWN_JOB = "The backend does not know this job."
    STEP_WAITS = "{step} waits: {error}"
    STEP_REVOKED = "{step} was dropped ({reason}): the run is stopped."
    FITS = "The cluster has room."
    NOT_CHECKED = "Capacity was not checked: there is no agent to ask."
    NO_CAPACITY = "The cluster has no room ({reasons}): waiting at position {position}, {left} s at most."
    WANTED = "Wanted: {wanted}."
    WANTED_AND_FREE = "Wanted: {wanted}. Free on the cluster: {free}."
    WAITS_FOR_CAPACITY = "Waiting for room on the cluster at position {position}, {left} s at most."
    CHECK_FAILED = "Capacity was not checked before the dispatch: the agent cannot be asked ({error})."
    IDENTICAL = "{app} is there already: nothing to submit."
    REPLACED = "{app} is replaced in place: the running version serves until the new one is ready"
    REPLACED_WITH_WAIT = (
        "{app} is replaced in place: no room for both versions, requests wait while the new one starts"
    )
    NEVER_RAN = "{app} never ran; it was removed."
    RUNS_AGAIN = "{app} runs again what it ran before."
    WAITS_FOR = "Waiting for pre-processor {release}."
    WAITS_FOR_JOB = "Waiting for pre-processor {release} (job {job})."
    DISPATCHED = "Waiting for pre-processor {release} (dispatched as job {job})."
    DIAGNOSIS = "Pre-processor {release} does not run yet: {details}."
    NOT_DISPATCHED = "its deployment is about to be dispatched"
    DEPLOYED_BY = "its deployment is job {job}"
    FREE_GPUS = "{free:g} of {total:g} GPUs are free"
    REPLICAS = "{count} replicas run on the cluster"
    QUEUE_POSITION = "queue position {position}"
    GONE = "Pre-processor {release} does not run any more: waiting for it."
    SLOW = "The backend is slow ({error}): annotating goes on more slowly."
    FAILED_TASKS = "{failed} of {total} tasks failed; task {task}: {error}"
    FEWER_LISTED = "{total} of {most} tasks were listed"
    CHANGED_LISTED = "{total} tasks were listed while others came or went: some may be missing"
    LEFT_OUT = "{count} records of the list were left out: their id is no positive integer"
    RUNS_WHOLE = "The action runs whole, as Ray job {id}."
    RUNS_WHOLE_FOR = "The action runs whole for its own {methods}, as Ray job {id}."


KOREAN: Final[Mapping[Text, str]] = {
    Text.UNKNOWN_JOB: "백엔드가 이 작업을 알지 못합니다.",
    Text.STEP_WAITS: "{step} 단계가 대기합니다: {error}",
    Text.STEP_REVOKED: "{step} 단계가 취소되어 ({reason}) 실행을 중지합니다.",
    Text.FITS: "클러스터에 여유가 있습니다.",
    Text.NOT_CHECKED: "물어볼 에이전트가 없어 용량을 확인하지 않았습니다.",
    Text.NO_CAPACITY: (
        "클러스터에 여유가 없습니다 ({reasons}). 대기 순서 {position}번째로 최대 {left}초 동안 기다립니다."
    ),
    Text.WANTED: "필요한 자원: {wanted}.",
    Text.WANTED_AND_FREE: "필요한 자원: {wanted}. 클러스터의 여유: {free}.",
    Text.WAITS_FOR_CAPACITY: "클러스터의 여유를 대기 순서 {position}번째로 최대 {left}초 동안 기다립니다.",
    Text.CHECK_FAILED: "에이전트에 물어볼 수 없어 ({error}) 배포를 요청하기 전에 용량을 확인하지 않았습니다.",
    Text.IDENTICAL: "{app}이(가) 이미 배포되어 있어 제출할 것이 없습니다.",
    Text.REPLACED: "{app}을(를) 교체합니다: 새 버전이 준비될 때까지 실행 중인 버전이 응답합니다",
    Text.REPLACED_WITH_WAIT: (
        "{app}을(를) 교체합니다: 두 버전을 둘 여유가 없어 새 버전이 시작될 때까지 요청이 대기합니다"
    ),
    Text.NEVER_RAN: "{app}이(가) 한 번도 실행되지 않아 제거했습니다.",
    Text.RUNS_AGAIN: "{app}이(가) 이전에 실행하던 버전을 다시 실행합니다.",
    Text.WAITS_FOR: "전처리기 {release}을(를) 기다립니다.",
    Text.WAITS_FOR_JOB: "전처리기 {release}을(를) 기다립니다 (작업 {job}).",
    Text.DISPATCHED: "전처리기 {release}을(를) 기다립니다 (작업 {job}(으)로 배포를 요청했습니다).",
    Text.DIAGNOSIS: "전처리기 {release}이(가) 아직 실행되지 않습니다: {details}.",
    Text.NOT_DISPATCHED: "곧 배포를 요청합니다",
    Text.DEPLOYED_BY: "작업 {job}이(가) 배포합니다",
    Text.FREE_GPUS: "GPU {total:g}개 중 {free:g}개가 비어 있습니다",
    Text.REPLICAS: "클러스터에서 레플리카 {count}개가 실행 중입니다",
    Text.QUEUE_POSITION: "대기 순서 {position}번째",
    Text.GONE: "전처리기 {release}이(가) 더 이상 실행되지 않아 기다립니다.",
    Text.SLOW: "백엔드가 느립니다 ({error}): 더 천천히 계속합니다.",
    Text.FAILED_TASKS: "작업 항목 {total}개 중 {failed}개가 실패했습니다. 항목 {task}: {error}",
    Text.FEWER_LISTED: "작업 항목 {most}개 중 {total}개만 나열되었습니다",
    Text.CHANGED_LISTED: (
        "작업 항목 {total}개가 나열되는 동안 다른 항목이 추가되거나 삭제되었습니다. 일부가 빠졌을 수 있습니다"
    ),
    Text.LEFT_OUT: "목록의 기록 {count}개를 제외했습니다: 식별자가 양의 정수가 아닙니다",
    Text.RUNS_WHOLE: "액션 전체가 Ray 작업 {id}(으)로 실행됩니다.",
    Text.RUNS_WHOLE_FOR: "액션이 {methods}을(를) 직접 정의하므로 전체가 Ray 작업 {id}(으)로 실행됩니다.",
}


def in_language(language: str, text: Text, **values: object) -> str:
    """The message in the run's language: Korean for `ko` and the like (`ko-KR`), else English."""
    is_korean = language.lower().replace("_", "-").partition("-")[0] == "ko"
    template = KOREAN[text] if is_korean else text.value
    return template.format(**values)
