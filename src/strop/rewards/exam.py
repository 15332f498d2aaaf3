"""The program that examines another: runs tests in one process and what they test in another, and says what came of it.

`code` hands this text to `sandbox`, and imports it for `write` alone. Two processes, because what shares an interpreter with its tests can make
them pass: by an object that equals everything, by the frames of its callers, by leaving with exit code 0. Here the tests'
process never runs a line of the candidate's. It calls the candidate's functions over a pipe and gets values back as text,
in a language of literals; it alone knows the word that a verdict must begin with: it reads tests and word after the other process was split off,
wipes them from the file they came in before that one may begin, and cannot be looked into (PR_SET_DUMPABLE). So the only
way to pass a test is to answer it.

What is lost: changes that a function makes to its arguments are not seen, and an object that is no plain value comes back
as a handle, which can be handed to the candidate again and is true or false, but has no attributes.

On stdin: the candidate, then a literal (word, name asked for, setup, tests), each with its length in 12 digits before it. On stdout: "begun"
before the first line of the candidate's, so that whatever keeps it from being said is none of its doing; then the word, "passed",
"failed", "syntax", "died" or "memory", and what happened.
"""

import builtins
import ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
else:  # importing typing takes 5 ms, and every verdict would
    Any = object

SET_DUMPABLE = 4  # of prctl(2)
ONLY_AST = 0x400  # ast.PyCF_ONLY_AST
BEGUN = "begun"
LONGEST_ITERATOR = 1_000_000
INFINITE = float("inf")
PLAIN = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}


# --- values as text -----------------------------------------------------------------------------------------------------


class Handle:
    """An object of the candidate's that is no plain value; only its own process has it."""

    def __init__(self, number: int, is_true: bool) -> None:
        self.number, self.is_true = number, is_true

    def __bool__(self) -> bool:
        return self.is_true


def write(value: Any, kept: list[Any]) -> str:
    """A value as text that `read` understands. What is no plain value goes to the list `kept`."""

    def several(values: Any) -> str:
        return "".join(write(v, kept) + "," for v in values)

    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, type) and PLAIN.get(value.__name__) is value:
        return f"plain({value.__name__!r})"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        number = float(value)
        return float.__repr__(number) if -INFINITE < number < INFINITE else f"float({str(number)!r})"
    if isinstance(value, complex):
        return f"complex({write(value.real, kept)},{write(value.imag, kept)})"
    if isinstance(value, str):
        return str.__repr__(value)
    if isinstance(value, bytes):
        return bytes.__repr__(value)
    if isinstance(value, list):
        return f"[{several(value)}]"
    if isinstance(value, tuple):
        return f"({several(value)})"
    if isinstance(value, dict):
        return "{" + "".join(f"{write(k, kept)}:{write(v, kept)}," for k, v in value.items()) + "}"
    for kind in (set, frozenset, bytearray):
        if isinstance(value, kind):
            return f"{kind.__name__}([{several(value)}])"
    if isinstance(value, range):
        return f"range({value.start},{value.stop},{value.step})"
    if isinstance(value, Handle):
        return f"handle({value.number},True)"
    if hasattr(value, "__next__"):
        given: Any = value
        return f"iter([{several(v for v, _ in zip(given, range(LONGEST_ITERATOR), strict=False))}])"
    kept.append(value)
    return f"handle({len(kept) - 1},{bool(value)})"


def read(text: str, handle: Any) -> Any:
    """The value of such a text. Raises ValueError for any other: nothing in it is evaluated, whoever wrote it."""
    makers = {
        "set": set, "frozenset": frozenset, "bytearray": bytearray, "range": range, "iter": iter, "float": float,
        "complex": complex, "handle": handle, "plain": PLAIN.__getitem__,
    }  # fmt: skip

    def value(node: Any) -> Any:
        match type(node).__name__:
            case "Constant":
                return node.value
            case "UnaryOp":
                return -value(node.operand)
            case "List":
                return [value(item) for item in node.elts]
            case "Tuple":
                return tuple(value(item) for item in node.elts)
            case "Dict":
                return {value(key): value(item) for key, item in zip(node.keys, node.values, strict=True)}
            case "Call" if node.func.id in makers and not node.keywords:
                return makers[node.func.id](*map(value, node.args))
        raise ValueError(f"{type(node).__name__} is no value")

    tree: Any = compile(text, "reply", "eval", ONLY_AST)  # importing ast, whose literal_eval knows less, takes 5 ms
    return value(tree.body)


# --- the pipe -----------------------------------------------------------------------------------------------------------


def send(out: int, *texts: str) -> None:
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        data = b"%12d" % len(data) + data
        while data:
            data = data[os.write(out, data) :]


def receive(source: int) -> str:
    """One text. Raises EOFError where the other side is gone."""
    return take(source, int(take(source, 12))).decode("utf-8", "surrogatepass")


def take(source: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(source, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# --- the candidate's process ----------------------------------------------------------------------------------------------


def answer(code: str, source: int, out: int) -> None:
    """Run the candidate once it may begin, say which names can be called, and call them as often as is asked."""
    receive(source)
    names: dict[Any, Any] = {"__name__": "candidate", "__builtins__": __builtins__}
    kept: list[Any] = []
    try:
        program = compile(code, "candidate.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        send(out, "syntax", repr(error))
        return
    try:
        exec(program, names)
    except BaseException as error:  # noqa: BLE001  whatever it is, it is the candidate's
        send(out, *raised(error))
        return
    send(out, "ok", write([name for name, value in names.items() if isinstance(name, str) and callable(value)], []))
    while True:
        name, arguments, named = read(receive(source), lambda number, _: kept[number])
        try:
            reply = "ok", write(names[name](*arguments, **named), kept)
        except BaseException as error:  # noqa: BLE001
            reply = raised(error)
        send(out, *reply)


def raised(error: BaseException) -> tuple[str, str]:
    known = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        return "raised", f"{known[0]}\n{error}"
    except BaseException:  # noqa: BLE001  its text is the candidate's as well
        return "raised", f"{known[0]}\n"


# --- the examiner's process -----------------------------------------------------------------------------------------------


class Examinee:
    """The other process, as the tests see it: functions."""

    def __init__(self, code: str) -> None:
        there, out = os.pipe()
        source, back = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            try:
                os.close(out)
                os.close(source)
                null = os.open("/dev/null", os.O_RDWR)
                for number in (0, 1, 2):
                    os.dup2(null, number)
                answer(code, there, back)
            finally:
                os._exit(0)
        os.close(there)
        os.close(back)
        self.source, self.out = source, out

    def reply(self) -> tuple[str, str]:
        """The kind of answer and its text. Raises SystemExit where the process is gone."""
        try:
            return receive(self.source), receive(self.source)
        except EOFError:
            _, status = os.waitpid(self.process, 0)
            code = os.waitstatus_to_exitcode(status)
            raise SystemExit("time" if code == -24 else f"died {code}") from None

    def function(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            kept: list[Any] = []
            text = write((name, arguments, named), kept)
            if kept:
                raise TypeError(f"{name} was given a {type(kept[0]).__name__}, which cannot be handed over")
            send(self.out, text)
            kind, text = self.reply()
            if kind == "ok":
                return read(text, Handle)
            known, _, message = text.partition("\n")
            if known == "MemoryError":
                raise SystemExit("memory")
            kind = getattr(builtins, known, None)
            usual = isinstance(kind, type) and issubclass(kind, Exception)
            raise kind(message) if usual and isinstance(kind, type) else Exception(message)

        return call


def examine(code: str) -> tuple[str, tuple[str, str]]:
    """The word, the finding, and what happened."""
    examinee = Examinee(code)
    word, asked, setup, tests = read(receive(0), Handle)
    os.ftruncate(0, 0)
    os.write(1, f"{BEGUN}\n".encode())
    send(examinee.out, "begin")
    return word, findings(examinee, asked, setup, tests)


def findings(examinee: Examinee, asked: str, setup: str, tests: list[str]) -> tuple[str, str]:
    place = "setup"
    try:
        kind, text = examinee.reply()
        if kind != "ok":
            return "syntax" if kind == "syntax" else "memory" if text.startswith("MemoryError") else "failed", text
        offered = read(text, Handle)
        names: dict[str, Any] = {"__name__": "tests", "__builtins__": __builtins__}
        names |= {name: examinee.function(name) for name in offered if name == asked or not hasattr(builtins, name)}
        exec(setup, names)
        for number, test in enumerate(tests):
            place = f"test {number}"
            exec(test, names)
    except SystemExit as error:
        return str(error).partition(" ")[0], str(error)
    except BaseException as error:  # noqa: BLE001  a test that raises is a test that failed
        return "failed", f"{place}: {type(error).__name__}: {error}"
    return "passed", f"{len(tests)} tests"


if __name__ == "__main__":
    sys.set_int_max_str_digits(0)
    if ctypes.CDLL(None).prctl(SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("prctl")
    word, (finding, what) = examine(receive(0))
    print(word, finding, what[:500].encode("ascii", "replace").decode().replace("\n", " "))
