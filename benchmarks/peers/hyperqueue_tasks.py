"""HyperQueue: a number of tasks, each of which is the process `true`, on a worker of 4 cores. Prints tasks a second.

It has no task without a process. Its journal is off, as everywhere where it is used as a library.
"""

import sys
import time

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def run(client, number: int) -> None:
    """Submit one job of so many tasks, and wait for its end."""
    job = Job()
    for _ in range(number):
        job.program(["/bin/true"], stdout=None, stderr=None)
    client.wait_for_jobs([client.submit(job)])


if __name__ == "__main__":
    number = int(sys.argv[2])
    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=4))
        client = cluster.client()
        run(client, 50)
        began = time.perf_counter()
        run(client, number)
        print(number / (time.perf_counter() - began))
