"""`voxmill run`: executor, job and driver put together."""

from __future__ import annotations

import os

from jobs.display import open_display
from jobs.driver import Driver
from jobs.executor import Executor, InlineExecutor
from jobs.finish import RunReport
from jobs.interrupts import Interrupts
from jobs.prepare import absolute, open_job
from pipeline.config import JobConfig


def run_job(config: JobConfig, *, plain: bool = False) -> RunReport:
    """Do the job, or what is left of it. Raises what `open_job` and `Driver.run` raise."""
    config = absolute(config)
    with Interrupts() as interrupts:
        display = open_display(plain)
        try:
            if config.executor == "ray":
                address = config.ray.address or os.environ.get("RAY_ADDRESS")
                display.say(f"joining Ray at {address}" if address else "starting a local Ray")
            executor = _started(config, interrupts)
            try:
                job = open_job(config, executor.pick_device(config.device))
            except BaseException:
                executor.close()
                raise
            return Driver(job, executor, display, interrupts).run()
        finally:
            display.close()


def _started(config: JobConfig, interrupts: Interrupts) -> Executor:
    """The executor; the first signal while it starts is answered when it is up.

    A Ray that is left half started aborts the process when it is ended, and the exit code is lost.
    """
    interrupts.drains(True)
    executor = make_executor(config)
    interrupts.drains(False)
    if interrupts.count:
        executor.close()
        raise KeyboardInterrupt
    return executor


def make_executor(config: JobConfig, *, replica_class: type | None = None) -> Executor:
    """The executor that the config names; Ray is imported only when it is meant.

    `replica_class` takes the place of Ray's actors (`jobs.ray_executor.ReplicaActor`).
    """
    if config.executor == "inline":
        return InlineExecutor()
    # Ray reads this when it is imported; without it a Ray of our own would listen on all interfaces of the host.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from jobs.ray_executor import RayExecutor

    return RayExecutor(config, replica_class)
