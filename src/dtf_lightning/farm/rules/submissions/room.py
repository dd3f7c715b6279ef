"""Whether a project's quota takes more tasks. Pure."""

from __future__ import annotations


def why_no_room(project: str, *, pending: int, new: int, most: int) -> str:
    """Say why tasks are not taken, with the counts and what to do; "" if they are.

    Args:
        pending: tasks of the project that are not done.
        new: those that are to come.
        most: how many may be pending; 0: any number.
    """
    if not most or not new or pending + new <= most:
        return ""
    are = "is" if pending == 1 else "are"
    tasks = "1 task is" if new == 1 else f"{new} tasks are"
    return (
        f"the project {project} may have {most} tasks that are not done, of which {pending} {are} there, and {tasks} too many by "
        f"{pending + new - most}: submit them later, or raise it with `dtf farm project set {project} --max-pending N`"
    )
