"""Why a task is where it is, in sentences."""

from typing import Any

import pytest

from corral.tasks.explain import Situation, explain
from corral.tasks.model import Phase, Reason, Resolved, Run, RunCreated, RunUsage, Task, TaskDefinition, TaskLife
from corral.tasks.ports import TenantTerms, WorkerOffer

ANN = "wrk_ann"


def a_run(phase: Phase, reason: Reason | None = None, **fields: Any) -> Run:
    return Run(created=RunCreated.SCHEDULED, created_s=0.0, phase=phase, reason=reason, **fields)


def ended(phase: Phase, **fields: Any) -> Run:
    return a_run(phase, worker=ANN, token=1, end=Resolved(at_s=5.0, phase=phase, **fields))


def why(phase: Phase, *runs: Run, reason: Reason | None = None, **view: Any) -> str:
    life = TaskLife(
        phase=phase,
        reason=reason,
        created_s=0.0,
        deadline_s=100.0,
        expires_after_s=100.0,
        retries_left=0,
        runs=runs,
        waits_for=view.pop("waits_for", ()),
    )
    definition = TaskDefinition(payload={}, runtime=view.pop("runtime", ""))
    fields = {"dependencies": {}, "ahead": 0, "running": 0, "terms": TenantTerms(), "workers": None, **view}
    task = Task(id="task_x", tenant="red", group="g", definition=definition, life=life)
    return " ".join(explain(Situation(task=task, now_s=10.0, **fields)))


def worker(**fields: Any) -> WorkerOffer:
    defaults = {"worker": ANN, "runtimes": ("bubblewrap",), "slots": 2, "slots_free": 1, "draining": False}
    return WorkerOffer(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        ({"workers": []}, "no worker is connected"),
        ({"workers": [worker()], "runtime": "qemu"}, 'no live worker offers the runtime "qemu"; offered: bubblewrap'),
        ({"workers": [worker(draining=True)]}, "every worker that could run it is drained"),
        ({"workers": [worker(slots_free=0)]}, "all 2 slots of the 1 workers that could run it are busy"),
        ({"running": 3, "terms": TenantTerms(max_running=3)}, "the tenant has 3 runs, and max_running is 3"),
        ({"ahead": 1}, "1 task of this tenant is served before it"),
        ({"ahead": 7}, "7 tasks of this tenant are served before it"),
        ({"workers": [worker()]}, "it is the next of this tenant"),
    ],
)
def test_a_pending_task_says_what_it_waits_for(view: dict[str, Any], sentence: str) -> None:
    assert sentence in why(Phase.PENDING, a_run(Phase.PENDING), **view)


def test_a_pending_task_that_was_tried_says_how_that_went() -> None:
    past = a_run(Phase.EXCEPTION, Reason.CLAIM_EXPIRED, worker=ANN)

    assert "It was tried before: claim-expired on wrk_ann." in why(Phase.PENDING, past, a_run(Phase.PENDING))


def test_runs_that_ended_alike_are_told_together() -> None:
    lost = a_run(Phase.EXCEPTION, Reason.CLAIM_EXPIRED, worker=ANN)
    again = a_run(Phase.EXCEPTION, Reason.INTERMITTENT_TASK, worker=ANN)

    text = why(Phase.COMPLETED, lost, again, again, again, ended(Phase.COMPLETED))

    assert "It had 5 runs; before the last: claim-expired on wrk_ann; intermittent-task on wrk_ann (3 times)." in text


def test_an_unscheduled_task_names_its_dependencies_and_how_they_stand() -> None:
    waits_for = tuple(f"task_{place}" for place in range(7))

    text = why(Phase.UNSCHEDULED, waits_for=waits_for, dependencies={"task_0": Phase.RUNNING})

    assert "task_0 (running), task_1 (forgotten)" in text
    assert "and 2 more to complete" in text


@pytest.mark.parametrize(
    ("started_s", "sentence"), [(None, "has not been started yet"), (4.0, "The command was started 6 s ago")]
)
def test_a_running_task_says_who_holds_it_and_how_far_it_is(started_s: float | None, sentence: str) -> None:
    text = why(Phase.RUNNING, a_run(Phase.RUNNING, worker=ANN, token=1, started_s=started_s))

    assert "run 0 is held by wrk_ann" in text
    assert sentence in text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"exit_status": 3}, "It failed: the command ended with exit status 3."),
        ({"signal": 9}, "It failed: the command was killed by signal 9."),
        ({"end": "not-started", "message": "no such command"}, "It failed: no such command."),
        ({"exit_status": 0, "message": "no artifact"}, "although its command ended with exit status 0: no artifact."),
        ({"exit_status": 137, "message": "it used all memory"}, "It failed with exit status 137: it used all memory."),
        ({"exit_status": 3, "message": "it ended with exit status 3"}, "It failed: it ended with exit status 3."),
    ],
)
def test_a_failed_task_says_how_its_command_ended(fields: dict[str, Any], sentence: str) -> None:
    assert sentence in why(Phase.FAILED, ended(Phase.FAILED, **fields))


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_of_an_exception_has_its_own_sentence(reason: Reason) -> None:
    text = why(Phase.EXCEPTION, a_run(Phase.EXCEPTION, reason), reason=reason, waits_for=("task_a",))

    others = {
        why(Phase.EXCEPTION, a_run(Phase.EXCEPTION, other), reason=other, waits_for=("task_a",))
        for other in Reason
        if other is not reason
    }
    assert text.startswith("It is an exception because")
    assert text not in others


def test_a_cold_start_is_explained_and_a_warm_one_told() -> None:
    cold = RunUsage(sandbox="sbx_1", cold_reason="the pool was empty")

    assert "a cold sandbox because the pool was empty" in why(Phase.COMPLETED, ended(Phase.COMPLETED, usage=cold))
    assert "a warm sandbox" in why(Phase.COMPLETED, ended(Phase.COMPLETED, usage=RunUsage(warm=True)))
