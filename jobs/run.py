"""`voxmill run`: executor, job and driver put together."""

from __future__ import annotations

import os
from collections.abc import Callable

from jobs.display import Display, open_display
from jobs.driver import Driver
from jobs.executor import Executor, InlineExecutor
from jobs.finish import RunReport
from jobs.interrupts import Interrupts
from jobs.prepare import OpenJob, absolute, open_job
from pipeline.config import CommonConfig, Device, JobConfig


def run_job(config: JobConfig, *, plain: bool = False) -> RunReport:
    """Do the job, or what is left of it. Raises what `open_job` and `Driver.run` raise."""
    config = absolute(config)
    return run_opened(config, lambda device, _display: open_job(config, device), plain=plain)


def run_opened(config: CommonConfig, open_it: Callable[[Device, Display], OpenJob], *, plain: bool) -> RunReport:
    """Do what is left of a job of any kind; `open_it` opens it for the device that the replicas will have.

    Raises what `open_it` and `Driver.run` raise.
    """
    with Interrupts() as interrupts:
        display = open_display(plain)
        try:
            if config.executor == "ray":
                address = config.ray.address or os.environ.get("RAY_ADDRESS")
                display.say(f"joining Ray at {address}" if address else "starting a local Ray")
            executor = _started(config, interrupts)
            try:
                job = open_it(executor.pick_device(config.device), display)
            except BaseException:
                executor.close()
                raise
            return Driver(job, executor, display, interrupts).run()
        finally:
            display.close()


def _started(config: CommonConfig, interrupts: Interrupts) -> Executor:
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


def make_executor(config: CommonConfig, *, replica_class: type | None = None) -> Executor:
    """The executor that the config names; Ray is imported only when it is meant.

    `replica_class` takes the place of Ray's actors (`jobs.ray_executor.ReplicaActor`).
    """
    if config.executor == "inline":
        return InlineExecutor()
    # Ray reads this when it is imported; without it a Ray of our own would listen on all interfaces of the host.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from jobs.ray_executor import RayExecutor

    return RayExecutor(config, replica_class)
