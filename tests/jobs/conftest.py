"""A Ray for the tests of this folder, bound to loopback, with GPUs declared that are not there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from tests import servers


@pytest.fixture(scope="session")
def local_ray(moto_server: servers.S3Server) -> Iterator[None]:
    """A Ray of one node with 4 CPUs, whose workers reach the test's object store."""
    import ray

    before = {name: os.environ.get(name) for name in moto_server.environment()}
    os.environ.update(moto_server.environment())
    try:
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=128 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        assert ip_address(ray.util.get_node_ip_address()).is_loopback
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    yield
    ray.shutdown()
