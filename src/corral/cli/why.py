"""`corral why`."""

import sys

from corral.cli.lazy import verb_app
from corral.cli.options import Json, TaskId, Url
from corral.cli.output import print_json, safe_text
from corral.cli.running import with_client
from corral.client import Corral


def why(task_id: TaskId, json: Json = False, url: Url = "") -> None:
    """Say why a task is pending, was cold, failed or was refused."""

    async def work(corral: Corral) -> None:
        answer = await corral.tasks.why(task_id)
        if json:
            print_json(answer)
            return
        sys.stdout.write("".join(f"{safe_text(reason)}\n" for reason in answer.reasons))

    with_client(url, work)


app = verb_app(why)
