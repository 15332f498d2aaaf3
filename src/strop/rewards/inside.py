"""The first lines that run in a sandbox: they finish the box where `unshare` only began it, set the limits, start the program.

Not for import: `sandbox` hands this text to the interpreter, which has the standard library and nothing of Strop's. What it is
told by its arguments: a limit for each of LIMITS, -1 for none; then, for `unshare` alone, the seconds until the end, how many bytes /tmp
may hold, and what is to be seen, as "bind", "device" or "link", where and what, with tabs between. The program comes on
stdin as marshal writes it, its length in 12 digits before it and its own input behind it. One "+" on stdout says that it begins now.

Imports are few and late: each costs a run a millisecond or more.
"""

import sys

if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path]  # nothing is imported from /tmp, where the program may write

import marshal
import os
import resource

LIMITS = ("AS", "CPU", "NPROC", "FSIZE", "CORE")
READ_ONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, MOVE, REC = 1, 2, 4, 8, 32, 4096, 8192, 16384  # of mount(2)
SET_DUMPABLE, CAPBSET_DROP, NO_NEW_PRIVS = 4, 24, 38  # of prctl(2)
CAPABILITY_VERSION = 0x20080522
ROOT = "/tmp"  # where the new root is put together


def close_the_box(size: str, shown: list[list[str]]) -> None:
    """A new root, read-only, with what is shown and an empty /tmp; the old one covered; all rights given up.

    Runs with the rights that a user has over namespaces of their own. Nothing can be reached of the old root: no path leads
    there, nobody may change mounts, and no open file is a folder of it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *values: object) -> None:
        if getattr(libc, name)(*values) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}{values[:3]}: {os.strerror(number)}")

    def mount(what: str | None, where: str, kind: str | None, flags: int, options: str | None = None) -> None:
        texts = [None if text is None else text.encode() for text in (what, where, kind, options)]
        call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])

    with open("/proc/sys/user/max_user_namespaces", "w") as file:  # of this namespace, which is a user's own
        file.write("0")
    handles = [os.open(what, os.O_PATH) if kind != "link" else -1 for kind, _, what in shown]  # before ROOT hides some
    mount("tmpfs", ROOT, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    binds = []
    for (kind, path, what), handle in zip(shown, handles, strict=True):
        os.makedirs(ROOT + os.path.dirname(path), exist_ok=True)
        if kind == "link":
            os.symlink(what, ROOT + path)
            continue
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            os.makedirs(ROOT + path, exist_ok=True)
        else:
            os.close(os.open(ROOT + path, os.O_CREAT))
        mount(f"/proc/self/fd/{handle}", ROOT + path, None, BIND | REC)
        os.close(handle)
        if kind == "bind":
            binds.append(ROOT + path)
    os.mkdir(ROOT + "/tmp")
    mount("tmpfs", ROOT + "/tmp", "tmpfs", NOSUID | NODEV, f"mode=1777,size={size}")
    for path in (*(path for bind in binds for path in mounts_at(bind)), ROOT):
        kept = os.statvfs(path).f_flag & NOEXEC  # nobody may take it from a mount that is another's
        mount(None, path, None, REMOUNT | BIND | READ_ONLY | NOSUID | NODEV | kept)
    os.chdir(ROOT)
    mount(ROOT, "/", None, MOVE)
    os.chroot(".")
    os.chdir("/tmp")
    number = 0
    while libc.prctl(CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", SET_DUMPABLE, 0, 0, 0, 0)  # nor may the program look into the first process
    call("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())


def mounts_at(place: str) -> list[str]:
    """`place`, and every mount below it that can be reached: each is read-only for itself alone."""
    found = {place}
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            path = os.fsdecode(line.split(b" ")[4])
            for character in " \t\n\\":
                path = path.replace(f"\\{ord(character):03o}", character)
            if path.startswith(place + "/") and os.path.exists(path):
                found.add(path)
    return sorted(found)


def stay_behind(seconds: int) -> None:
    """Go on as a child, so that the first process of the namespace only waits: when it ends, so does everything in it.

    That is after `seconds` at the latest, should nobody be left outside who would end it.
    """
    import _signal  # pyright: ignore[reportMissingImports]  signal takes 4 ms more

    first = os.fork()
    if first == 0:
        return
    for stream in (0, 1, 2):
        os.close(stream)
    _signal.signal(_signal.SIGALRM, lambda *_: os._exit(137))
    _signal.alarm(seconds)
    while True:
        child, status = os.wait()
        if child == first:
            code = os.waitstatus_to_exitcode(status)
            os._exit(128 - code if code < 0 else code)


def set_limits(values: list[int]) -> None:
    """None above what is allowed already. At the CPU limit comes a signal that says so, a second later one that kills."""
    for name, value in zip(LIMITS, values, strict=True):
        if value < 0:
            continue
        limit = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(limit)
        most = value + 1 if name == "CPU" else value
        most = most if hard < 0 else min(most, hard)
        resource.setrlimit(limit, (min(value, most), most))


def program():
    """What is to run: code, or text that is compiled here, where nothing happens if that takes all the memory there is.

    Reads no further: what comes behind it is not for this process' memory.
    """
    given = marshal.loads(os.read(0, int(os.read(0, 12))))
    return compile(given, "program.py", "exec", dont_inherit=True) if isinstance(given, str) else given


if __name__ == "__main__":
    os.closerange(3, 256)  # what this one's parents held open is none of the program's business
    values, told = sys.argv[1 : len(LIMITS) + 1], sys.argv[len(LIMITS) + 1 :]
    if told:
        close_the_box(told[1], [text.split("\t") for text in told[2:]])
        stay_behind(int(told[0]))
    set_limits([int(value) for value in values])
    sys.argv[:] = ["program.py"]
    os.write(1, b"+")
    exec(program(), {"__name__": "__main__", "__builtins__": __builtins__})
