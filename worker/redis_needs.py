"""What the worker needs of its Redis: no cluster, a known version, and the rights of its user."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from redis import Redis, ResponseError
from redis.exceptions import NoPermissionError

from shared.channels import dead_letters_key, events_channel, job_key, redis_prefix

MIN_VERSION: Final = (6, 2)

CLUSTER_ERROR: Final = (
    "REDIS_URL or CELERY_BROKER_URL is a Redis Cluster, which the worker cannot use: set a single Redis,"
    " or one that Sentinel fails over (sentinel://…)"
)

COMMANDS_ON_A_KEY: Final = (
    *("hset f v", "hsetnx f v", "hincrby f 0", "hget f", "hmget f", "hgetall", "hexists f", "hdel g", "hlen"),
    *("persist", "pexpire 10000", "pttl", "expire 10", "exists"),
    *("set v NX EX 10", "get", "incr", "setbit 0 0", "getbit 0"),
    *("sadd m", "srem m", "smembers", "scard"),
    *(
        "zadd 1 m",
        "zrem m",
        "zremrangebyscore 0 0",
        "zrange 0 0",
        "zrangebyscore 0 0",
        "zscore m",
        "zcard",
        "zcount 0 0",
    ),
    *("lpush v", "rpush v", "lpop", "rpop", "blpop 1", "brpop 1", "lrange 0 0", "llen"),
    *("xadd * f v", "xlen", "xdel 0-1", "xrange - +", "xrevrange + -"),
    *("unlink", "del", "dump", "restore 0 x", "watch"),
)
"""What worker, live page and transport call, with arguments that harm no hash; at last they delete it."""

OTHER_COMMANDS: Final = (
    "ping",
    "time",
    "info cluster",
    "unwatch",
    "client id",
    "client setname doctor",
    "client tracking off",
    "client caching no",
    "script load x=1",
    "script exists 0",
)

COMMANDS_OF_OTHER_FORMS: Final = ("select", "xread", "memory usage", "publish", "eval", "evalsha")
SUBSCRIPTION_COMMANDS: Final = ("subscribe", "unsubscribe", "psubscribe", "punsubscribe")
TRANSACTION_COMMANDS: Final = ("multi", "exec")

SUBCOMMANDS: Final = ("client", "script", "memory")

CONTROL_CHANNELS: Final = ("celery.pidbox", "celeryev/*", "celeryev/worker.*")
"""The patterns to which Celery subscribes, behind `/{database}.`: remote control and events.
Redis allows a subscription to a pattern only where a rule is that very pattern."""


class RedisClusterError(RuntimeError):
    """The server is a Redis Cluster; the message says what to set."""


def reject_cluster(redis: Redis) -> None:
    """Raise `RedisClusterError` for a Redis Cluster.

    A cluster keeps keys on several servers, and the worker's scripts change keys of several jobs at once.
    """
    try:
        is_cluster = redis.info("cluster").get("cluster_enabled") == 1
    except ResponseError:
        return  # The user may not call INFO. `doctor` says so.
    if is_cluster:
        raise RedisClusterError(CLUSTER_ERROR)


def command_rules() -> set[str]:
    """The rules by which a user may call every command that is looked for, such as `+get` or `+client|id`."""
    commands = [
        *(*COMMANDS_ON_A_KEY, *OTHER_COMMANDS, *COMMANDS_OF_OTHER_FORMS),
        *(*SUBSCRIPTION_COMMANDS, *TRANSACTION_COMMANDS),
    ]
    return {f"+{_rule_name(command.split())}" for command in commands}


def missing_rights(
    redis: Redis, queues: Sequence[str], *, database: int = 0, keyprefix: str = ""
) -> Iterator[str]:
    """What the user may not do, as lines that name the rule to add.

    `queues` are those on this server, in `database` and with the transport's `keyprefix`. One key is written
    and deleted: `{prefix}:doctor`.
    """
    yield from _missing_commands(redis)
    for pattern, key in _keys(queues, keyprefix):
        # A script's keys must be readable and writable, whatever it does with them.
        if "one of the keys" in _denial(redis, "EVAL", "return 1", 1, key):
            yield f"the user may not use the key {key}: add ~{pattern}"
    for pattern, channel in _channels(queues):
        if _is_channel_denied(redis, channel):
            yield f"the user may not use the channel {channel}: add &{pattern}"
    for name in CONTROL_CHANNELS if queues else ():
        pattern = f"{keyprefix}/{database}.{name}"
        if _is_channel_denied(redis, pattern, is_pattern=True):
            yield f"the user may not subscribe to the pattern {pattern}: add &{pattern}"


def _missing_commands(redis: Redis) -> Iterator[str]:
    key = f"{redis_prefix()}:doctor"
    of_a_key = [(name, key, *arguments) for name, *arguments in map(str.split, COMMANDS_ON_A_KEY)]
    others = [tuple(command.split()) for command in OTHER_COMMANDS]
    of_other_forms = [
        ("select", str(redis.get_connection_kwargs().get("db") or 0)),
        ("xread", "COUNT", "1", "STREAMS", key, "$"),
        ("memory", "usage", key),
        ("publish", events_channel("doctor"), "{}"),
        ("eval", "return 1", "0"),
        ("evalsha", "0" * 40, "0"),
    ]
    denied = [
        command for command in [*of_a_key, *others, *of_other_forms] if _is_denied(_denial(redis, *command))
    ]
    denied += [(name,) for name in SUBSCRIPTION_COMMANDS if _is_denied(_subscription_denial(redis, name))]
    for command in denied:
        name = _rule_name(command)
        yield f"the user may not call {' '.join(name.split('|')).upper()}: add +{name}"
    try:
        with redis.pipeline(transaction=True) as pipe:
            pipe.ping().execute()
    except (NoPermissionError, ResponseError) as error:
        if "'ping'" not in str(error):  # which has been said
            yield "the user may not call MULTI and EXEC: add +multi +exec"


def _keys(queues: Sequence[str], keyprefix: str) -> Iterator[tuple[str, str]]:
    """Pairs of a pattern and a key that it stands for."""
    prefix = redis_prefix()
    yield f"{prefix}:*", job_key("doctor")
    yield f"{{{dead_letters_key()}}}:*", f"{{{dead_letters_key()}}}:jobs"
    for queue in queues:
        yield f"{keyprefix}{queue}*", f"{keyprefix}{queue}"
    if queues:
        if keyprefix:
            yield f"{keyprefix}{prefix}:*", f"{keyprefix}{prefix}:broker:held"
        yield f"{keyprefix}_kombu.binding*", f"{keyprefix}_kombu.binding_deadlines"
        yield f"{keyprefix}*.celery.pidbox*", f"{keyprefix}doctor.reply.celery.pidbox"
        yield f"{keyprefix}celeryev*", f"{keyprefix}celeryev.doctor"


def _channels(queues: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield f"{redis_prefix()}:*", events_channel("doctor")
    if queues:
        yield "__redis__:invalidate", "__redis__:invalidate"


def _denial(redis: Redis, *command: Any) -> str:
    """The text with which the server denies a command; empty when it does not."""
    try:
        redis.execute_command(*command)
    except NoPermissionError as error:
        return str(error)
    except ResponseError:
        return ""
    return ""


def _is_denied(denial: str) -> bool:
    """Whether the command is. Else it is allowed and the key or the channel is not, which is another line."""
    return "to run the" in denial


def _rule_name(command: Sequence[str]) -> str:
    return "|".join(command[:2]) if command[0] in SUBCOMMANDS else command[0]


def _is_channel_denied(redis: Redis, channel: str, *, is_pattern: bool = False) -> bool:
    denial = _subscription_denial(redis, "psubscribe" if is_pattern else "subscribe", channel)
    return bool(denial) and not _is_denied(denial)


def _subscription_denial(redis: Redis, command: str, channel: str = "") -> str:
    """As `_denial`, on a connection of its own, which is closed."""
    pubsub = redis.pubsub()
    try:
        pubsub.execute_command(command, channel or events_channel("doctor"))
        pubsub.parse_response(block=False, timeout=2)
    except NoPermissionError as error:
        return str(error)
    finally:
        pubsub.close()
    return ""
