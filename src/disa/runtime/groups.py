"""The control groups of Linux that may limit this process: a container's, a job's of SLURM, a unit's of systemd."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def control_groups(controller: str, root: Path) -> set[Path]:
    """Folders of the groups that this process is in and of all around them, in either version; some may not be there.

    controller: `cpu` or `memory`, whose groups they are. root: that of the file system.
    """
    top = root / "sys/fs/cgroup"
    # In a container its own group is mounted as the root of all.
    found = {top, top / controller}
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = [*line.split(":", 2), "", ""][:3]
            if not controllers or controller in controllers.split(","):
                inside = Path(group.lstrip("/"))
                found |= {top / controllers / part for part in (Path(), inside, *inside.parents)}
    return found
