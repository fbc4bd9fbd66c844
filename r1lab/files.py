"""Files that appear in one piece."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write the new content to; on leaving it becomes `path`, after an error it is removed.

    A reader, and whoever comes after a kill, finds the old file or the new one, never a part of one.
    Raises OSError when it cannot be moved into place.
    """
    # No suffix that a search for files of path's kind would match.
    temporary = path.with_name(f".tmp-{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
