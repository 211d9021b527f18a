"""A whole job on a fleet that is simulated: the real driver and the real ledger, a thousand replicas, a million shards.

    python -m infra.bench.simulate [--replicas 1000] [--shards 1000000] [--speed 1000] [--failure-rate 0.001] ...

Objects are in memory and time is simulated; the driver's processor time, its requests and its memory are real.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter

from infra.bench.fleet import WAV_BYTES_PER_S, Fleet, FleetConfig, drive, job_config, peak_bytes
from infra.bench.report import BenchReport, Figure
from infra.bench.stores import CountedStore, MemoryStore

BASE = "s3://simulated"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--shard-audio-s", type=float, default=3600.0, help="of one shard, on average")
    parser.add_argument("--sigma", type=float, default=0.3, help="of the lognormal sizes of shards")
    parser.add_argument("--speed", type=float, default=1000.0, help="audio seconds a replica encodes a second")
    parser.add_argument("--speed-spread", type=float, default=0.1, help="share by which replicas differ")
    parser.add_argument("--lead-s", type=float, default=0.5, help="until a shard's first batch is ready")
    parser.add_argument("--put-s", type=float, default=0.5, help="from its last batch to its commit")
    parser.add_argument("--start-s", type=float, default=60.0, help="within which replicas come up, and come again")
    parser.add_argument("--failure-rate", type=float, default=0.001, help="of attempts")
    parser.add_argument("--deaths-per-hour", type=float, default=0.05, help="of one replica")
    parser.add_argument("--seed", type=int, default=0)


def bench(arguments: argparse.Namespace) -> BenchReport:
    """Run the job once."""
    memory = MemoryStore()
    audio_s = put_inputs(memory, arguments.shards, arguments.shard_audio_s, arguments.sigma, arguments.seed)
    store = CountedStore(memory, BASE)
    fleet = Fleet(
        FleetConfig(
            num_replicas=arguments.replicas,
            speed=arguments.speed,
            speed_spread=arguments.speed_spread,
            lead_s=arguments.lead_s,
            put_s=arguments.put_s,
            start_s=arguments.start_s,
            failure_rate=arguments.failure_rate,
            deaths_per_hour=arguments.deaths_per_hour,
            seed=arguments.seed,
        )
    )
    began_s = time.monotonic()
    driven = drive(fleet, job_config(BASE), store)
    wall_s = time.monotonic() - began_s
    assert driven.report.exit_code == 0, driven.report.lines()
    num, run_s = arguments.shards, fleet.now_s
    loop_cpu_s = driven.loop_cpu_s
    figures = (
        Figure("driver CPU a shard, from opening to the end", 1e3 * driven.cpu_s / num, "ms", at_most=1.0),
        Figure("driver CPU a shard, while it runs", 1e3 * loop_cpu_s / num, "ms"),
        Figure("driver CPU over the run's time", loop_cpu_s / run_s),
        Figure("makespan over the ideal", run_s / fleet.ideal_s(audio_s)),
        Figure("the run's time, simulated", run_s, "s"),
        Figure("shards a second", num / run_s),
        Figure("events a second", fleet.num_events.total() / run_s),
        Figure("attempts a shard", fleet.num_attempts / num),
        Figure("replicas lost", fleet.num_events["ReplicaDown"]),
        Figure("status written", store.requests["put out/status.json"], "times"),
        Figure("manifest written", store.requests["put out/manifest.parquet"], "times"),
        Figure("driver's memory at its peak, with the simulated stores", peak_bytes() / (1 << 30), "GiB"),
        Figure("this simulation took", wall_s, "s"),
    )
    details = {
        "arguments": vars(arguments),
        "cpu_s": {"open": driven.open_cpu_s, "loop": loop_cpu_s, "finish": driven.finish_cpu_s, "fleet": fleet.cpu_s},
        "events": Counter(fleet.num_events),
        "requests": dict(sorted(store.requests.items())),
    }
    return BenchReport("simulate", figures, details)


def put_inputs(store: MemoryStore, num_shards: int, mean_s: float, sigma: float, seed: int) -> list[float]:
    """Shards below `BASE`/in whose sizes are those of WAV; returns the seconds of audio of each."""
    rng = random.Random(seed)
    draws = [rng.lognormvariate(0.0, sigma) for _ in range(num_shards)]
    scale = mean_s * num_shards / sum(draws)
    for index, draw in enumerate(draws):
        store.put(
            f"{BASE}/in/part-{index // 1000:04d}/shard-{index:07d}.tar", b"", round(draw * scale * WAV_BYTES_PER_S)
        )
    return [draw * scale for draw in draws]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--json", action="store_true", help="with all details")
    arguments = parser.parse_args()
    report = bench(arguments)
    print(json.dumps(report.to_json(), indent=1) if arguments.json else "\n".join(report.lines()))


if __name__ == "__main__":
    main()
