"""Dask distributed: a number of tasks, `noop` or `true`, on 4 single-threaded worker processes. Prints tasks a second."""

import subprocess
import sys
import time

from distributed import Client, LocalCluster, wait


def noop(_: int) -> None:
    """Do nothing."""


def true(_: int) -> None:
    """Run `true` as a process."""
    subprocess.run(["/bin/true"], check=True)


if __name__ == "__main__":
    function, number = {"noop": noop, "true": true}[sys.argv[1]], int(sys.argv[2])
    with LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        wait(client.map(function, range(50), pure=False))
        began = time.perf_counter()
        wait(client.map(function, range(number), pure=False))
        print(number / (time.perf_counter() - began))
