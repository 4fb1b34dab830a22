"""`corral task story`."""

from corral.cli.lazy import verb_app
from corral.cli.options import Json, TaskId, Url
from corral.cli.output import print_json, print_table
from corral.cli.running import with_client
from corral.client import Corral
from corral.kernel.units import format_duration


def story(task_id: TaskId, json: Json = False, url: Url = "") -> None:
    """Tell everything that happened to a task."""

    async def work(corral: Corral) -> None:
        told = await corral.tasks.story(task_id)
        if json:
            print_json(told)
            return
        first_s = told.events[0].at_s if told.events else 0.0
        print_table(
            ("AFTER", "EVENT", "RUN", "WHAT"),
            [
                (
                    format_duration(max(0.0, each.at_s - first_s)),
                    each.kind,
                    "" if each.run is None else str(each.run),
                    each.text,
                )
                for each in told.events
            ],
            empty="nothing happened yet",
        )

    with_client(url, work)


app = verb_app(story)
