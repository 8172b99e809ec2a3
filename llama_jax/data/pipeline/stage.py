"""A stage: blocks that are run for each of a number of tasks, when the stage before is done."""

# pyright: reportMissingImports=false

import dataclasses

from datatrove.pipeline.base import PipelineStep


@dataclasses.dataclass(frozen=True)
class Stage:
    """What every task of it runs, in this order."""

    name: str
    blocks: list[PipelineStep]
    num_tasks: int
