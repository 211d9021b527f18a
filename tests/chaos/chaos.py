"""One chaos run from its seed to its judgement."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tests.chaos.director import Director, shard
from tests.chaos.history import events_of, judge
from tests.chaos.weather import Weather
from tests.corpus import CLIPS
from tests.faults.ground import Lab, Place
from tests.faults.invariants import Expected, check
from tests.faults.proxy import FaultProxy
from tests.servers import S3Server, make_bucket


@dataclass(frozen=True)
class Outcome:
    """What was violated (nothing, when all is well), and what was done."""

    violations: list[str]
    counts: dict[str, int]


def chaos(lab: Lab, server: S3Server, folder: Path, *, seconds: float, seed: int, with_ray: bool) -> Outcome:
    """Faults for so long, then the judgement; the history of all requests stays in the folder when it is bad."""
    bucket = f"chaos-{uuid4().hex}"
    make_bucket(server, bucket)
    place, weather = Place(f"s3://{bucket}", server), Weather(seed)
    with FaultProxy(server, weather) as proxy:
        environment = server.environment() | {"AWS_ENDPOINT_URL": proxy.endpoint}
        director = Director(lab, place, environment, weather, random.Random(seed), with_ray)
        try:
            director.direct(seconds)
            director.conclude()
        finally:
            director.close()
        log = proxy.log
    violations, objects = list(director.faulty), place.objects()
    verdict = judge(events_of(log, weather.records, "out/"), objects)
    violations += verdict.violations
    violations += _state(lab, director, objects)
    faults = Counter(f"fault {one.fault}" for one in log if one.fault)
    if violations:
        (folder / "log.jsonl").write_text("\n".join(json.dumps(vars(one)) for one in log))
        (folder / "records.json").write_text(json.dumps({n: body.decode() for n, body in weather.records.items()}))
    return Outcome(violations, {**director.counts, "requests": len(log), **faults, **verdict.counts})


def _state(lab: Lab, director: Director, objects: dict[str, bytes]) -> list[str]:
    """The final place against the truth, and against a fault-free run."""
    truth = {index: lab.clip_ids(clip.read_bytes()) for index, clip in enumerate(CLIPS)}
    rows = {name: {CLIPS[index].stem: truth[index] for index in clips} for name, clips in director.contents.items()}
    contents = {name: shard(clips) for name, clips in director.contents.items()}
    try:
        hashes = lab.reference(contents, ())
        check(objects, Expected(rows=rows, hashes=hashes, committed=frozenset(rows), killed=True))
    except AssertionError as error:
        return [str(error)]
    return []
