"""What the ledger keeps of an environment."""

from corral.tasks.environment import environment_digest

ENV = {"PATH": "/usr/bin", "TOKEN": "hunter2", "CORRAL_TASK_ID": "task_a", "CORRAL_RUN_ID": "0"}
SECRETS = {"deploy": "hunter2"}


def test_a_repetition_has_the_same_digest_and_another_value_has_not() -> None:
    again = {**ENV, "CORRAL_TASK_ID": "task_b", "CORRAL_RUN_ID": "3"}

    assert environment_digest(ENV, SECRETS) == environment_digest(dict(reversed(again.items())), SECRETS)
    assert environment_digest(ENV, SECRETS) != environment_digest({**ENV, "PATH": "/bin"}, SECRETS)


def test_a_secret_cannot_be_guessed_from_the_digest() -> None:
    other = {**ENV, "TOKEN": "another"}

    assert environment_digest(ENV, SECRETS) == environment_digest(other, {"deploy": "another"})
