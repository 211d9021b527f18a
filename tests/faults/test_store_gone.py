"""A store that lets nobody in any more, or is gone: bounded patience, honest words, nothing lost."""

from __future__ import annotations

from tests.faults.exchanges import Refuse, Reset
from tests.faults.matrix import row
from tests.faults.rules import Outage, is_put, tries

EXPIRED = Refuse(403, "ExpiredToken")
ONE_BY_ONE = "--set=running.shards_in_flight=1"
RESUME = "the same command again does the rest"


def num_commits(ground):
    return sum(path.startswith("commits/") for path in ground.place.objects())


def after_two_commits():
    """Matches from the third commit on."""
    seen: set[str] = set()

    def rule(request):
        if is_put("commits")(request):
            seen.add(request.key)
        return len(seen) > 2

    return rule


@row("store", "credentials expire mid-run", "403 ExpiredToken from the third commit on; renewed for the next run")
def test_expired(s3_ground, proxy):
    s3_ground.put_clean(5)
    proxy.rule = Outage(after=after_two_commits(), fault=EXPIRED)
    ended = s3_ground.run(ONE_BY_ONE, "--set=running.denied_s_max=0.3", "--set=running.infra_attempts_max=1000")
    says = ["renew the credentials", "2 of 5 shards are committed", RESUME, "ExpiredToken"]
    secrets = [s3_ground.place.server.secret_key, s3_ground.place.server.access_key]
    s3_ground.check(ended, exit_code=2, may_miss=True, says=says, never=secrets)
    assert num_commits(s3_ground) == 2
    assert max(map(len, tries(proxy.faults()).values())) < 40, "it waits between two tries"
    proxy.rule = lambda request: None
    ended = s3_ground.run()
    s3_ground.check(ended)
    assert ended.report["num_committed_now"] == 3
    assert not [one for one in proxy.faults() if one.method == "DELETE"]


@row(
    "store",
    "credentials expire and come back",
    "403 ExpiredToken for ten requests, as a role renews them late",
    heavy=True,
)
def test_renewed(s3_ground, proxy):
    s3_ground.put_clean(5)
    proxy.rule = Outage(after=after_two_commits(), num=10, fault=EXPIRED)
    s3_ground.check(s3_ground.run(ONE_BY_ONE))
    assert len(proxy.faults()) == 10


@row(
    "store",
    "the store goes for good",
    "503 from the third commit on; then no connection at all; then it is back",
    heavy=True,
)
def test_gone(s3_ground, proxy):
    s3_ground.put_clean(5)
    proxy.rule = Outage(after=after_two_commits())
    bounds = ["--set=running.infra_attempts_max=2", "--set=retry.attempts_max=3"]
    ended = s3_ground.run(ONE_BY_ONE, *bounds)
    s3_ground.check(
        ended, exit_code=1, may_miss=True, says=["2 of 5 shards are committed", RESUME, "gave up after 3 tries"]
    )
    assert num_commits(s3_ground) == 2
    commit_puts = [one for one in tries(proxy.log).values() if one[0].fault and is_put("commits")(one[0])]
    assert [len(exchanges) for exchanges in commit_puts] == [3]
    proxy.rule = lambda request: Reset()
    num_before = len(proxy.log)
    ended = s3_ground.run(*bounds)
    assert (ended.exit_code, ended.report) == (1, {})
    assert "gave up after 3 tries" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert {len(exchanges) for exchanges in tries(proxy.log[num_before:]).values()} == {6}, "each is sent twice"
    proxy.rule = lambda request: None
    ended = s3_ground.run()
    s3_ground.check(ended)
    assert ended.report["num_committed_now"] == 3
