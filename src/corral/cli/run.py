"""`corral run`: upload, queue, follow, fetch, and leave with the command's own status."""

import asyncio
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from corral.cli.completion import task_ids
from corral.cli.follow import Follower
from corral.cli.lazy import verb_app
from corral.cli.options import Json, Url
from corral.cli.output import note, print_json
from corral.cli.running import with_client
from corral.cli.spec import artifact_input_of, artifact_of, cache_of, definition_of, environment_of, input_of
from corral.cli.status import Status, progress_text
from corral.client import ArtifactKind, Corral, Phase, Priority, TaskDefinition, TaskView
from corral.kernel.concurrency import finish
from corral.kernel.errors import CorralError, InvalidSpec
from corral.kernel.units import parse_duration_s, parse_size

_CANCEL_S = 5.0


def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after `--`.", metavar="CMD")],
    image: Annotated[str, typer.Option("--image", "-i", help='"" for the host\'s read-only root.')] = "",
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-I",
            metavar="DIR|FILE|artifact:TASK/NAME[:PATH]",
            help="Upload, or take from an earlier task, and place below the working directory.",
        ),
    ] = None,
    artifacts: Annotated[
        list[str] | None,
        typer.Option("--artifact", "-a", metavar="PATH", help="Fetch this file, DIRECTORY/ or glob afterwards."),
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where artifacts go.")] = Path(),
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="K=V", help="Environment variable.")] = None,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help='Longest run, such as "10m".')] = "",
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help='Memory limit, such as "2GB".')] = "",
    disk: Annotated[
        str, typer.Option("--disk", metavar="SIZE", help='Limit of /work and of /tmp, such as "4GB"; counts as memory.')
    ] = "",
    cpus: Annotated[float | None, typer.Option("--cpus", help="CPU limit, such as 1.5.")] = None,
    processes: Annotated[int | None, typer.Option("--processes", help="Processes and threads at one time.")] = None,
    files: Annotated[int | None, typer.Option("--files", help="Files in /work and in /tmp.")] = None,
    cache: Annotated[
        list[str] | None, typer.Option("--cache", metavar="NAME:PATH", help="Keep PATH between tasks under NAME.")
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option("--secret", metavar="VAR=NAME", help="Give a secret of the tenant as VAR.")
    ] = None,
    needs: Annotated[
        list[str] | None, typer.Option("--needs", metavar="TASK", help="Run after this task.", autocompletion=task_ids)
    ] = None,
    name: Annotated[str, typer.Option("--name", "-n", help="For people.")] = "",
    group: Annotated[str, typer.Option("--group", help="Tasks of a group are listed and canceled together.")] = "",
    runtime: Annotated[
        str, typer.Option("--runtime", help="Kind of isolation; the worker's default if not given.")
    ] = "",
    priority: Annotated[Priority, typer.Option("--priority", help="Before others of the tenant.")] = Priority.NORMAL,
    network: Annotated[bool, typer.Option("--network", help="Ask for network; the worker must allow it.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the id and leave.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Pass control sequences of the log on to the terminal.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the log.")] = False,
    json: Json = False,
    url: Url = "",
) -> int:
    """Run a command in a sandbox: upload, queue, follow, fetch.

    The exit status is the command's own. Ctrl-C cancels the task, and so does whoever stops reading its log.
    """
    payload: dict[str, Any] = {"command": command, "image": image, "network": network}
    payload["env"] = environment_of(env or [])
    payload["artifacts"] = [artifact_of(each) for each in artifacts or []]
    if cpus is not None and not math.isfinite(cpus):
        # JSON could not even say it
        raise InvalidSpec(f"--cpus: {cpus} is out of range; write for example 1.5", field="cpus")
    if timeout:
        parse_duration_s(timeout, field="--timeout")
        payload["max_run_time"] = timeout
    if memory:
        parse_size(memory, field="--memory")
    if disk:
        parse_size(disk, field="--disk")
    resources = {"memory": memory, "disk": disk, "cpus": cpus, "processes": processes, "files": files}
    payload["resources"] = {key: value for key, value in resources.items() if value not in (None, "")}
    payload["caches"] = [cache_of(each) for each in cache or []]
    payload["secrets"] = environment_of(secret or [], option="--secret")
    earlier = {each: found for each in inputs or [] if (found := artifact_input_of(each))}
    payload["inputs"] = list(earlier.values())
    places = [input_of(each) for each in inputs or [] if each not in earlier]
    definition = definition_of(
        {
            "payload": {key: value for key, value in payload.items() if value},
            "name": name,
            "group": group,
            "runtime": runtime,
            "priority": priority.value,
            "dependencies": needs or [],
        }
    )
    follower = Follower(Status(enabled=not quiet and not json), raw=raw, to_stderr=json)

    async def work(corral: Corral) -> int:
        prepared = await _uploaded(corral, definition, places, follower.status)
        task = await corral.tasks.submit(prepared)
        if detach:
            print_json(task) if json else print_id(task)
            return 0
        follower.status.told(f"{task.id} queued")
        try:
            done = await follower.follow(corral, task)
        except (asyncio.CancelledError, BrokenPipeError):  # a reader that has left, as `head` does, ends it, too
            await finish(_cancel(corral, task.id), within_s=_CANCEL_S)
            raise
        finally:
            follower.status.close()
        fetched = await _fetch(corral, done, output_dir, quiet=quiet)
        if json:
            print_json({"task": done, "artifacts": fetched})
        return status_of(done, quiet=quiet, showed=follower.showed)

    return with_client(url, work)


def print_id(task: TaskView) -> None:
    """The id alone, for scripts."""
    sys.stdout.write(task.id + "\n")


def status_of(task: TaskView, *, quiet: bool, showed: Callable[[str], bool]) -> int:
    """The exit status for a final task; says what went wrong in one line, unless the log has just ``showed`` it."""
    run = task.last_run
    message = run.message if run is not None else ""
    if showed(message):
        message = ""
    if task.phase is Phase.COMPLETED:
        return 0
    if task.phase is Phase.EXCEPTION:
        reason = task.reason.value if task.reason else "exception"
        note("error", f"{task.id}: {reason}{': ' + message if message else ''}")
        note("hint", f"corral why {task.id}")
        return 1
    if not quiet:
        note("error", f"{task.id}: {message or task.phase.value}")
    return task.exit_status or 1


async def _uploaded(
    corral: Corral, definition: TaskDefinition, places: list[tuple[Path, str]], status: Status
) -> TaskDefinition:
    if not places:
        return definition
    inputs = list(definition.payload.get("inputs", ()))
    for local, path in places:
        inputs.append(await corral.uploads.input(local, path, on_progress=lambda p: status.show(progress_text(p))))
    payload = {**definition.payload, "inputs": inputs}
    return definition_of({"payload": payload}, over=definition)


async def _fetch(corral: Corral, task: TaskView, into: Path, *, quiet: bool) -> list[str]:
    if not task.definition.payload.get("artifacts") or task.last_run is None:
        return []
    written = []
    for found in await corral.artifacts.list(task.id):
        if found.artifact.kind is ArtifactKind.ERROR:
            if found.artifact.message not in task.last_run.message:  # else it is told as the end of the task
                note("warning", f"artifact {found.artifact.name}: {found.artifact.message}")
            continue
        target = await corral.artifacts.fetch(task.id, found, into)
        written.append(str(target))
        if not quiet:
            note("", f"artifact {target}")
    return written


async def _cancel(corral: Corral, task_id: str) -> None:
    try:
        await corral.tasks.cancel(task_id)
        await corral.tasks.wait(task_id)
    except CorralError as error:
        note("error", f"{task_id} may still run: {error.message}")
        return
    note("", f"{task_id} canceled")


app = verb_app(run, context_settings={"allow_interspersed_args": False})
