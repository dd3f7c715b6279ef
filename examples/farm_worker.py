"""A farm worker over REST, by the standard library alone: one command at a time, with its output.

    python examples/farm_worker.py http://127.0.0.1:8080 TOKEN_FILE NAME

It is a start for workers in other languages and on devices where this package cannot be; `docs/farm.md` says what each
request means. It runs commands as they are: no workspace, no limits, no source. Use `dtf farm worker` where you can.
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ADDRESS, TOKEN, NAME = sys.argv[1], Path(sys.argv[2]).read_text().strip(), sys.argv[3]


def ask(method, path, body=None, data=None):
    """Return the answer; ask again while nobody answers, or the answer is "not now"."""
    data = json.dumps(body).encode() if body is not None else data
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    while True:
        try:
            request = urllib.request.Request(ADDRESS + path, data, headers, method=method)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return error.code, json.load(error)
        except OSError as error:
            print(f"{ADDRESS}: {error}", file=sys.stderr)
        time.sleep(1)


def run(task):
    """Make an attempt, and say how it ended until the farm has recorded it, or does not want it any more."""
    path, revision, began = f"/api/tasks/{task['task_id']}", task["revision"], time.time()
    try:
        environment = {**os.environ, **task["environment"]}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(task["command"], env=environment, **pipes, timeout=task["timeout"], check=False)
        output, code, error = done.stdout, done.returncode, f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as problem:
        output, code, error = str(problem).encode(), None, str(problem)[:1000]
    ask("POST", f"{path}/logs?revision={revision}&offset=0", data=output)
    told = {"worker_id": NAME, "revision": revision, "started": began, "ended": time.time(), "log_bytes": len(output)}
    how = {"exit_code": 0} if code == 0 else {"exit_code": code, "error": error}
    print(task["task_id"], ask("POST", f"{path}/{'complete' if code == 0 else 'fail'}", {**told, **how}))


def stay(session, running, over):
    """Say every few seconds that the worker is there, while it runs something."""
    while not over.wait(5):
        ask("POST", "/api/health", {"worker_id": NAME, "session": session, "running": running})


while True:
    status, registered = ask("POST", "/api/register", {"worker_id": NAME, "identity": NAME, "devices": {"cpu": 1}})
    if status != 200:
        sys.exit(registered["error"])
    while status == 200:  # 409: register again
        path = f"/api/workers/{NAME}/tasks?session={registered['session']}&wait=10"
        status, answer = ask("GET", path)
        for task in answer.get("tasks", []):
            over = threading.Event()
            running = {task["task_id"]: task["revision"]}
            beat = threading.Thread(target=stay, args=(registered["session"], running, over))
            beat.start()
            run(task)
            over.set()
            beat.join()
