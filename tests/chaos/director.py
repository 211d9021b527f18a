"""Many faults at once on one job: drivers that are killed, stopped and woken, bad weather, changing inputs, gc."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.chaos.weather import PHASES, Weather
from tests.clusters import Process, kill, session, wait_for
from tests.corpus import CLIPS, tar_of, texts
from tests.faults.ground import FAST, Ended, Lab, Place, Running

DRIVERS_MAX = 3
ZOMBIES_MAX = 3
SHARDS_MAX = 40
CLEAN_S_MAX = 180.0
"""For a run without faults to end with all done."""

LEAVE_S_MAX = 90.0
"""For what was still alive when the faults stopped."""

FLAGS = (
    "--codec=calibrated:cost_s=0.2",
    *FAST,
    "--set=retry.attempts_max=6",
    "--set=retry.backoff_s=0.02",
    "--set=retry.total_s_max=20",
    "--set=running.status_every_s=1",
    "--set=running.manifest_every_s=2",
    "--set=storage.connect_timeout_s=3",
    "--set=storage.read_timeout_s=1.5",
)

HIT_S_MAX = 60.0
"""Past its time, for a run that was not yet hit by every kind of fault."""

EXIT_CODES = {0, 1, 2, 3, -signal.SIGKILL}
"""Of a run amid the faults: 2 where inputs had changed, or there was nothing yet to read."""


@dataclass
class Command:
    """A command that was started, and since when it is to be woken, where it was stopped."""

    name: str
    running: Running
    wakes_s: float | None = None


@dataclass
class Director:
    """Draws what happens next from a seed; what is really hit depends on the machine as well."""

    lab: Lab
    place: Place
    environment: Mapping[str, str]
    weather: Weather
    rng: random.Random
    with_ray: bool
    contents: dict[str, tuple[int, ...]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faulty: list[str] = field(default_factory=list)
    _commands: list[Command] = field(default_factory=list)

    def direct(self, seconds: float) -> None:
        """Do things until the time is up and each kind of fault has hit something; then let the faults stop."""
        self._put_input(new=True)
        self._put_input(new=True)
        deeds: dict[Callable[[], None], float] = {
            self._start: 4.0,
            self._kill: 1.5,
            self._stop: 1.5,
            self._terminate: 0.7,
            lambda: self._look("gc", f"--grace-s={self.rng.choice((0, 0, 1, 5))}"): 1.0,
            lambda: self._look("status"): 0.4,
            lambda: self._look("verify"): 0.4,
            lambda: self._put_input(new=True): 1.0,
            lambda: self._put_input(new=False): 0.7,
            lambda: self._turn(self.rng.choice(list(PHASES))): 1.0,
        }
        end_s = time.monotonic() + seconds
        self._start(ray=self.with_ray)
        self._turn("everything")
        while time.monotonic() < end_s or not self._has_hit():
            assert time.monotonic() < end_s + HIT_S_MAX, f"not hit by all faults: {self.counts}"
            self._tend()
            self.rng.choices(list(deeds), list(deeds.values()))[0]()
            time.sleep(self.rng.uniform(0.05, 0.6))
        self._turn("calm")

    def _has_hit(self) -> bool:
        return self.weather.num_faults > 0 and all(self.counts[name] for name in ("SIGKILL", "SIGSTOP"))

    def conclude(self) -> None:
        """A clean run while the zombies sleep, and another when they have had their say: both must be complete."""
        self._leave([command for command in self._commands if command.wakes_s is None])
        self._clean_run("the clean run")
        for command in self._commands:
            command.wakes_s = 0.0
        self._tend()
        self._leave(list(self._commands))
        self._clean_run("the clean run after the zombies")

    def close(self) -> None:
        """Whatever happened, nothing stays."""
        for command in self._commands:
            kill(session(command.running.pid))

    def _start(self, *, ray: bool = False) -> None:
        drivers = [command for command in self._commands if command.wakes_s is None and command.name.endswith("run")]
        if len(drivers) >= DRIVERS_MAX:
            return
        ray |= self.with_ray and self.rng.random() < 0.15 and not any(c.name == "ray run" for c in self._commands)
        flags = ["--executor=ray", "--replicas=2", "--set=ray.cpus_per_replica=0"] if ray else ["--executor=inline"]
        if self.rng.random() < 0.7:
            flags.append("--redo-changed")
        if self.rng.random() < 0.3:
            flags.append("--retry-failed")
        self._begin("ray run" if ray else "run", self._run_arguments(*flags))

    def _run_arguments(self, *flags: str) -> list[str]:
        inputs, output = f"--input={self.place.base}/in/*.tar", f"--output={self.place.base}/out"
        return ["run", inputs, output, *FLAGS, *flags, "--json"]

    def _look(self, name: str, *flags: str) -> None:
        if sum(command.name == name for command in self._commands) == 0:
            self._begin(name, [name, f"{self.place.base}/out", *flags, "--json"])

    def _begin(self, name: str, arguments: list[str]) -> None:
        self.counts[f"{name} started"] += 1
        self._commands.append(Command(name, self.lab.start(arguments, self.environment)))

    def _awake(self) -> list[Command]:
        return [command for command in self._commands if command.wakes_s is None]

    def _kill(self) -> None:
        """All of a command at once, or for a run on Ray maybe only one of its processes."""
        if self._awake():
            command = self.rng.choice(self._awake())
            victims = sorted(session(command.running.pid), key=lambda process: process.pid)
            if command.name == "ray run" and self.rng.random() < 0.6:
                victims = [process for process in victims if process.name.startswith("ray::")][:1]
            self.counts["SIGKILL"] += bool(victims)
            kill(victims)

    def _stop(self) -> None:
        if self._awake() and len(self._commands) - len(self._awake()) < ZOMBIES_MAX:
            command = self.rng.choice(self._awake())
            self._signal(command, signal.SIGSTOP)
            command.wakes_s = time.monotonic() + self.rng.choice((0.5, 3.0, 10.0, 30.0))

    def _terminate(self) -> None:
        if self._awake():
            command = self.rng.choice(self._awake())
            self.counts["SIGTERM"] += 1
            if Process.find(command.running.pid):
                os.kill(command.running.pid, signal.SIGTERM)

    def _signal(self, command: Command, number: signal.Signals) -> None:
        self.counts[number.name] += 1
        for process in session(command.running.pid):
            if process.runs:
                os.kill(process.pid, number)

    def _turn(self, phase: str) -> None:
        self.counts["phases"] += 1
        self.weather.turn(phase)

    def _put_input(self, *, new: bool) -> None:
        if new and len(self.contents) >= SHARDS_MAX:
            return
        name = f"chaos-{len(self.contents):03d}.tar" if new else self.rng.choice(sorted(self.contents))
        clips = tuple(sorted(self.rng.sample(range(len(CLIPS)), self.rng.randint(1, 3))))
        self.counts["inputs added" if new else "inputs replaced"] += 1
        self.place.put(f"in/{name}", shard(clips))
        self.contents[name] = clips

    def _tend(self) -> None:
        """Wake who has slept enough; take what has ended."""
        for command in list(self._commands):
            if command.wakes_s is not None and time.monotonic() >= command.wakes_s:
                self._signal(command, signal.SIGCONT)
                command.wakes_s = None
            if (command.running.folder / "ended.json").exists():
                self._commands.remove(command)
                self._judge_end(command, command.running.wait())

    def _judge_end(self, command: Command, ended: Ended) -> None:
        self.counts[f"{command.name} ended with {ended.exit_code}"] += 1
        last = ended.stderr.strip().rsplit("\n", 1)[-1]
        is_look = not command.name.endswith("run")  # these leave SIGTERM to the system
        if ended.exit_code not in EXIT_CODES and not (is_look and ended.exit_code == -signal.SIGTERM):
            self.faulty.append(f"{command.name} ended with {ended.exit_code}: {last}")
        if "Traceback" in ended.stderr and ended.exit_code != -signal.SIGKILL:
            self.faulty.append(f"{command.name} ended with {ended.exit_code} and a traceback:\n{ended.stderr[-3000:]}")
        if command.name.endswith("run") and ended.exit_code == 2 and "changed since" not in ended.stderr:
            self.counts[f"refused: {last[:60]}"] += 1

    def _leave(self, commands: list[Command]) -> None:
        """Let them end by themselves; what does not is a fault."""
        try:
            wait_for(lambda: self._tend() or not any(c in self._commands for c in commands), "all ended", LEAVE_S_MAX)
        except TimeoutError:
            for command in commands:
                if command in self._commands:
                    self.faulty.append(f"{command.name} does not end:\n{command.running.stderr[-2000:]}")
                    kill(session(command.running.pid))

    def _clean_run(self, what: str) -> None:
        arguments = self._run_arguments("--executor=inline", "--redo-changed", "--retry-failed")
        started_s = time.monotonic()
        ended = self.lab.start(arguments, self.environment).wait(CLEAN_S_MAX)
        self.counts[f"{what}, seconds"] = round(time.monotonic() - started_s)
        if ended.exit_code != 0:
            self.faulty.append(f"{what} ended with {ended.exit_code}:\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")


def shard(clips: tuple[int, ...]) -> bytes:
    """These clips of the corpus, with their texts."""
    words = texts()
    members: list[tuple[str, bytes]] = []
    for clip in (CLIPS[index] for index in clips):
        members += [(f"{clip.stem}.flac", clip.read_bytes()), (f"{clip.stem}.txt", words[clip.stem].encode())]
    return tar_of(members)
