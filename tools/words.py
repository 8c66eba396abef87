"""The words that this project has given up, each with the one that it uses now.

`NAMES` are identifiers, as they were written. `WORDS` are patterns for prose (comments, docstrings, log
events and pages) and for the words of an identifier: `comes_back` and `ComesBack` are read as "comes back".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

_TO_TASK = ("worker/to_task/", "tests/unit/to_task/")
_PRE_PROCESSOR = ("worker/pre_processor/", "tests/unit/pre_processor/")
_DEPLOY = ("worker/deploy/", "tests/unit/deploy/")
_RUNS = ("worker/runs/", "worker/workflow/", "tests/unit/runs/")
_ENGINE = tuple(f"worker/{name}/" for name in ("runs", "workflow", "deploy", "pre_processor", "to_task"))
_CLI = ("worker/cli/", "tests/unit/cli/")


@dataclass(frozen=True)
class OldName:
    """An identifier that is not used any more, below `folders` or, without any, nowhere."""

    name: str
    use: str
    folders: tuple[str, ...] = ()


class Place(StrEnum):
    """Where a word is looked for."""

    PROSE = "prose"
    IDENTIFIER = "identifier"
    CONSTANT = "constant"


_EVERYWHERE = (Place.PROSE, Place.IDENTIFIER)


@dataclass(frozen=True)
class OldWord:
    """A word that is not used any more; `name` is how findings and exceptions call it."""

    name: str
    pattern: re.Pattern[str]
    use: str
    places: tuple[Place, ...]


def _word(name: str, pattern: str, use: str, *places: Place) -> OldWord:
    return OldWord(name, re.compile(pattern, re.IGNORECASE), use, places or _EVERYWHERE)


def _names(folders: tuple[str, ...], replacements: Mapping[str, str]) -> list[OldName]:
    return [OldName(name, use, folders) for names, use in replacements.items() for name in names.split()]


NAMES: tuple[OldName, ...] = (
    *_names(
        (),
        {
            "BACKBONE_ERRORS": "INFRASTRUCTURE_ERRORS",
            "Beginning Begun": "StepClaim",
            "PollAgain": "Reschedule",
            "QuietRequest": "RedactedRequest",
            "Turns": "Bulkhead",
            "carry_out": "run_step",
            "come_back": "retry_later",
            "put_off": "extend",
            "seal sealed": "mark_reported",
            "Bell": "InvalidationListener",
            "Debts": "PendingAcks",
            "unfailing": "guarded_tracer",
            "pool_work PoolWork": "in_flight",
            "at_home": "run_on_agent_worker",
            "has_run": "mark_ran",
            "ASTRAY": "superseded_since",
            "TOLD": "reported_reasons",
            "Room RoomName RoomKey": "Waitlist",
            "let_out": "resume",
            "Crew": "AnnotationRuntime",
            "Pace": "Throttle",
            "Catalogue": "TaskIndex",
            "Booking": "Subscription",
            "Feed": "LineBuffer",
            "Outlet": "LogWriter",
            "Following": "LogTailer",
            "Patience": "Backoff",
            "insist": "retry_forever",
            "Silence": "IdleTimeout",
            "Trail": "Pagination",
            "_Stage": "ModuleIsolation",
            "serve_forms": "application_builder",
            "Spool": "LogFanout",
            "guardian": "supervisor",
            "Yard Hall Ground": "a harness named by what it runs",
            "Postman": "BrokerBridge",
            "said_by_others": "untrusted_text",
        },
    ),
    *_names(
        _RUNS,
        {
            "Live": "Heartbeats",
            "expect": "schedule",
            "measure": "set_metrics",
            "say": "append",
            "settle": "close_if_complete",
        },
    ),
    *_names((), {"Park": "Suspend"}),
    *_names(_ENGINE, {"findings note": "state", "again": "is_retry"}),
    *_names(_DEPLOY, {"let_go": "release"}),
    *_names(
        _PRE_PROCESSOR,
        {
            "hear": "extend_deadline",
            "adopt": "set_job",
            "amend": "update",
            "doubtful": "job_unverified",
            "unclear": "maybe_accepted",
            "silent": "no_reply_since",
            "looked": "last_polled",
            "Verdict verdict": "Decision",
            "judge": "evaluate",
            "ramp": "backoff",
        },
    ),
    *_names(
        _TO_TASK,
        {
            "Attempt": "ChunkPass",
            "held": "retryable",
            "full": "saturated",
            "Work": "TaskWork",
            "Mark": "TaskOutcome",
            "spread": "dispatch_chunks",
            "Route": "AnnotationMethod",
            "news tell": "publish_progress",
            "choose": "select_tasks",
            "settle": "finish_pass",
            "presence": "availability",
        },
    ),
    *_names(("worker/",), {"wire Wire": "transport", "suspect": "mark_stale"}),
    *_names(("worker/",), {"bounded": "with a timeout"}),
    *_names(_CLI, {"reach": "try_connect", "refuse": "bad_address", "lost": "redis_unavailable"}),
)

WORDS: tuple[OldWord, ...] = (
    # Room as space stays: "no room", "room for", "make room", "is there room?".
    _word(
        "room",
        r"(?<!\bno )(?<!\bhas )(?<!\bmake )(?<!\bmakes )(?<!\bleave )(?<!\bleaves )(?<!\bthere )"
        r"(?<!\bthere is )(?<!\benough )(?<!\bmore )\broom\b(?! for\b)|\brooms\b",
        "waiting list, or package",
    ),
    _word("door", r"\bdoors?\b", "entry task"),
    _word("neighbour", r"\bneighbou?rs?\b", "dependency"),
    # The verb stays: "turns a name into", "turn off", and so does "in turn".
    _word(
        "turn",
        r"\b(?:a|an|the|its|no|each|every|one|own|same|another|their|free|all|whose|of|with|takes?|took|finds?|found)"
        r" turns?\b(?! (?:on|off|into|out|up|over)\b)",
        "slot",
        Place.PROSE,
    ),
    _word(
        "turn", r"\bturns?\b(?! (?:on|off|into|out|up|over|an?|the|its?|every)\b)", "slot", Place.IDENTIFIER
    ),
    # "Connection refused" is the operating system's own term.
    _word(
        "refuse",
        r"(?<!\bconnection )(?<!\bconnections )(?<!\bconnection is )(?<!\bconnection was )"
        r"\brefus(?:e|es|ed|ing|als?)\b(?! connections?\b)",
        "reject",
    ),
    _word("sign of life", r"\bsigns? of life\b", "heartbeat"),
    _word("come back", r"\b(?:come|comes|came|coming) back\b", "retry later"),
    _word("hand back", r"\b(?:hand|hands|handed|handing) back\b", "requeue"),
    # To tell apart, and to tell whether, stay.
    _word(
        "tell",
        r"\b(?:tell|tells|told|telling|untold)\b(?! (?:\w+ )?(?:apart|whether|if|which|how|from)\b)",
        "report",
    ),
    _word(
        "take in",
        r"\b(?:take|takes|took|taken|taking) in\b(?! (?:\w*seconds|bytes|(?:the )?order|turn)\b)",
        "accept",
    ),
    _word("bear", r"\b(?:borne|bear|bears|bearing)\b", "tolerate, or have"),
    _word("backbone", r"\bbackbones?\b", "infrastructure"),
    _word("bell", r"\bbells?\b", "invalidation listener"),
    _word("debt", r"\bdebts?\b", "pending acknowledgements"),
    _word("astray", r"\bastray\b", "superseded"),
    _word("let out", r"\blet(?:s|ting)? (?:\w+ )?out\b", "resume"),
    _word("let go", r"\blet(?:s|ting)? go\b", "release"),
    _word("doubtful", r"\bdoubtful\b", "unverified"),
    _word("crew", r"\bcrews?\b", "annotation runtime"),
    _word("catalogue", r"\bcatalogues?\b", "task index"),
    _word("booking", r"\bbook(?:s|ed|ings?)\b", "subscription"),
    _word("outlet", r"\boutlets?\b", "log writer"),
    _word("patience", r"\b(?:im)?patien(?:ce|t)\b", "backoff, or timeout"),
    _word("insist", r"\binsist(?:s|ed|ing)?\b", "retry until it succeeds"),
    _word("spool", r"\bspools?\b", "log fan-out"),
    _word("guardian", r"\bguardians?\b", "supervisor"),
    _word("nursery", r"\bnurser(?:y|ies)\b", "forkserver"),
    _word("mortal", r"\bmortals?\b", "crash injection"),
    _word("diary", r"\bdiar(?:y|ies)\b", "effect log"),
    _word("ground", r"\bgrounds?\b", "harness", Place.IDENTIFIER),
    _word("yard", r"\byards?\b", "harness"),
    _word("hall", r"\bhalls?\b", "harness"),
    _word("postman", r"\bpostm[ae]n\b", "broker bridge"),
    _word("said by others", r"\bsaid by others\b", "untrusted text"),
    _word("carry out", r"\bcarr(?:y|ies|ied|ying) out\b", "run_step", Place.IDENTIFIER),
    _word("is none of", r"\b(?:is|are|was|were) none of\b", "is not one of", Place.PROSE),
    _word("against it", r"\b(?:has|have|had) (?:\w+ )?against\b", "say what is wrong", Place.PROSE),
    _word("go out", r"\b(?:go|goes|went|going) out\b", "is sent", Place.PROSE),
    _word("who", r"(?:^|[.:;] )(?:who|whoever) \w+", "name the process, run or caller", Place.PROSE),
    _word("longest", r"^(?:longest|shortest|most|least|largest|smallest)\b", "MAX_ or MIN_", Place.CONSTANT),
)
