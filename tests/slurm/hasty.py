"""Snakemake that asks for the state of its jobs every second.

The plugin's own interval grows by ten seconds whenever no job has ended: right on a cluster, where
jobs take hours, and minutes of waiting here.
"""

import asyncio

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def sleep(executor: RemoteExecutor) -> None:
    """Wait until the next look at the jobs."""
    await asyncio.sleep(1)


if __name__ == "__main__":
    RemoteExecutor.sleep = sleep
    main()
