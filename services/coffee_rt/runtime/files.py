"""The limit of open files: raised to the hard limit at start, and checked."""

from __future__ import annotations

import resource

from coffee_rt.runtime.settings import SettingsError


def ensure_open_files(files_min: int) -> int:
    """Raise the soft limit to the hard one; the limit then. Raises SettingsError below `files_min`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft != resource.RLIM_INFINITY and soft < files_min:
        raise SettingsError(
            f"only {soft} files may be open, {files_min} are needed: raise the hard limit "
            "(ulimit -Hn), or lower COFFEE_RT_HTTP_CONNECTIONS_MAX, COFFEE_RT_FANOUT_SESSIONS_MAX or "
            "COFFEE_RT_OPEN_FILES_MIN, whichever asks for so many"
        )
    return soft
