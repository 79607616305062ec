"""Which version of the code this is."""

import subprocess
from pathlib import Path


def git(folder: Path, *command: str) -> str | None:
    """What a git command prints in ``folder``; None without git or outside a repository."""
    try:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit(folder: Path) -> str | None:
    """The commit that ``folder`` stands at, or None."""
    return git(folder, "rev-parse", "HEAD")


def changed(folder: Path) -> bool:
    """Whether anything tracked in ``folder`` differs from its commit."""
    return bool(git(folder, "status", "--porcelain", "--untracked-files=no"))
