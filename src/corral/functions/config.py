"""The limits of functions on the scheduler."""

import msgspec


class FunctionsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The registry and the decisions about instances. All times in seconds.

    Attributes:
        functions_max: of one tenant.
        revisions_max: of one function; beyond it the oldest ones without a part of the split leave.
        scale_max: largest ``scale.max`` that a revision may ask for.
        module_bytes: of a program.
        prepare_s: how long a deployment waits for a worker to check and compile the program.
        warm_s: how long a switch or split waits for a first instance of a revision that gets requests.
        start_s: an instance that is not ready so long after it was ordered has failed.
        routed_s: how long a change waits, after it is stored, until all fronts route by it.
        reconnect_grace_s: how long after the loss of a worker's stream its instances count as living.
        settle_s: how long a scheduler that starts waits for the workers it knows before it decides anything.
        tick_s: how often all is compared without a hint; reports and changes are acted on at once.
        report_s: how often workers tell statistics when nothing else changes.
        drain_s: how long requests of an instance that leaves may take to end.
        backoff_first_s, backoff_last_s: pauses after failed starts, and early ends, of a revision; they double.
        breaker_failures: failed starts in a row by the revision's own fault that break it.
        breaker_requests: so many requests within ``breaker_window_s``, all of which trapped or timed out, break it.
        history_keep: changes of a function that are kept.
        forget_after_s: removed functions leave after so long.
        log_bytes: kept of the output of one function.
        log_waiting_bytes: of all functions, on the way to the disk; more is dropped and counted.
        module_urls: prefixes of the URLs that programs may be fetched from; none by default.
        task_view: serve the older interface for functions, /tasks, /functions and /revisions, too.
        domains: tenant to the domain below which its functions have host names.
        compare_s: how often schedulers on one database look for each other's changes and instances; on PostgreSQL they
            also tell each other at once.
        home_expires_s: a scheduler that published nothing for so long is gone for the others.
    """

    functions_max: int = 10_000
    revisions_max: int = 100
    scale_max: int = 100
    module_bytes: int = 64 * 1024**2
    prepare_s: float = 60.0
    warm_s: float = 5.0
    start_s: float = 20.0
    routed_s: float = 1.0
    reconnect_grace_s: float = 1.0
    settle_s: float = 2.0
    tick_s: float = 0.5
    report_s: float = 1.0
    drain_s: float = 30.0
    backoff_first_s: float = 0.2
    backoff_last_s: float = 30.0
    breaker_failures: int = 5
    breaker_requests: int = 20
    breaker_window_s: float = 10.0
    history_keep: int = 1000
    forget_after_s: float = 30 * 86_400.0
    log_bytes: int = 4 * 1024**2
    log_waiting_bytes: int = 4 * 1024**2
    module_urls: tuple[str, ...] = ()
    task_view: bool = True
    domains: dict[str, str] = {}
    compare_s: float = 1.0
    home_expires_s: float = 5.0
