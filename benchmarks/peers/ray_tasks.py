"""Ray: a number of tasks, `noop` or `true`, on 4 CPUs. Prints tasks a second."""

import subprocess
import sys
import time

import ray


@ray.remote(num_cpus=1)
def noop() -> None:
    """Do nothing."""


@ray.remote(num_cpus=1)
def true() -> None:
    """Run `true` as a process."""
    subprocess.run(["/bin/true"], check=True)


if __name__ == "__main__":
    function, number = {"noop": noop, "true": true}[sys.argv[1]], int(sys.argv[2])
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.get([function.remote() for _ in range(50)])
    began = time.perf_counter()
    ray.get([function.remote() for _ in range(number)])
    print(number / (time.perf_counter() - began))
    ray.shutdown()
