"""An agent in a process of its own, to be killed and frozen: `python agent_process.py ENDPOINT RUN NODE SOCKET SETTINGS`.

Starts one incarnation of one worker, which the test attaches, prints `started`, and lives until its input ends.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path


class AgentProcess:
    """The test's end of it."""

    def __init__(self, endpoint: str, run_id: str, node: str, socket_path: str, settings: dict[str, object]) -> None:
        self.node = node
        self.socket_path = socket_path
        self.process = subprocess.Popen(
            [sys.executable, __file__, endpoint, run_id, node, socket_path, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "started\n", line

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def main() -> None:
    from dtf_lightning.elastic.agent.live.agent import LiveAgent
    from dtf_lightning.elastic.settings import AgentSettings
    from dtf_lightning.etcd import connect

    endpoint, run_id, node, socket_path, settings = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format=f"{node} %(message)s")
    conf = json.loads(settings)
    agent = LiveAgent(
        connect(endpoint, quiet=True),
        AgentSettings.from_rdzv_conf(conf.pop("min_nodes", 1), conf.pop("max_nodes", 4), conf),
        run_id,
        node=node,
        host="127.0.0.1",
        store_port=1,
        socket_path=socket_path,
    )
    agent.start()
    agent.await_start()
    agent.workers_starting(1)
    sys.stdout.write("started\n")
    sys.stdout.flush()
    sys.stdin.read()
    Path(socket_path).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
