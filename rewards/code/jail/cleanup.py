"""Looking at and emptying directories that a hostile program has filled. Links are never followed."""

import os
import stat

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def usage(directory: str, max_files: int) -> tuple[int, int]:
    """(bytes, entries) beneath a directory; counting stops soon after max_files entries.

    A directory that cannot be read counts as full: hiding files is no way around the limit.
    """
    total = count = 0
    stack = [directory]
    while stack and count <= max_files:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if count > max_files:
                        break
        except FileNotFoundError:
            continue  # Deleted while we looked.
        except OSError:  # No permission, or a path that is too long.
            return total, max_files + 1
    return total, count


def empty_directory(directory: str) -> None:
    """Deletes all that a directory holds; call it when nothing runs there any more.

    Walks by descriptors, one open at a time and without recursion, so that no tree is too deep for it.
    """
    current = os.open(directory, DIRECTORY)
    path: list[str] = []
    waiting = [_delete_files(current)]
    try:
        while True:
            if waiting[-1]:
                path.append(waiting[-1].pop())
                current = _step(current, path[-1])
                waiting.append(_delete_files(current))
            elif path:
                waiting.pop()
                current = _step(current, "..")
                os.rmdir(path.pop(), dir_fd=current)
            else:
                return
    finally:
        os.close(current)


def remove_tree(directory: str) -> None:
    """Deletes a directory with all it holds; one that is gone already is fine."""
    try:
        empty_directory(directory)
        os.rmdir(directory)
    except FileNotFoundError:
        pass


def _delete_files(directory: int) -> list[str]:
    """Deletes the files of an open directory; the names of its directories, made accessible."""
    directories = []
    for name in os.listdir(directory):
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.chmod(name, 0o700, dir_fd=directory)
            directories.append(name)
        else:
            os.unlink(name, dir_fd=directory)
    return directories


def _step(current: int, name: str) -> int:
    following = os.open(name, DIRECTORY, dir_fd=current)
    os.close(current)
    return following
