import pytest

from rewards.code import Limits, run_program

MIB = 1 << 20

HONEST = {
    "threads": "import threading\nts = [threading.Thread(target=print, args=(i,)) for i in range(50)]\n"
    "[t.start() for t in ts]; [t.join() for t in ts]; print('fine')",
    "a thread with a big stack": "import sys, threading\nthreading.stack_size(256 << 20)\n"
    "sys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)\n"
    "t = threading.Thread(target=f, args=(20000,)); t.start(); t.join(); print('fine')",
    "recursion": "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else f(n - 1)\n"
    "f(50000); print('fine')",
    "temporary files": "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as f:\n    f.write('x'); f.seek(0)\n"
    "    assert f.read() == 'x'\nwith tempfile.TemporaryDirectory() as d: open(d + '/f', 'w').close()\nprint('fine')",
    "files": "import os\nos.mkdir('d')\nopen('d/a', 'w').write('1')\nos.rename('d/a', 'b')\n"
    "assert open('b').read() == '1'\nos.remove('b'); os.rmdir('d'); print('fine')",
    "asyncio": "import asyncio\nasync def f(): await asyncio.sleep(0.001); return 'fine'\nprint(asyncio.run(f()))",
    "an executor": "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(4) as pool: assert sum(pool.map(int, '123')) == 6\nprint('fine')",
    "decimals": "from decimal import Decimal, getcontext\ngetcontext().prec = 100\nDecimal(2).sqrt(); print('fine')",
    "time zones": "from datetime import datetime\nfrom zoneinfo import ZoneInfo\n"
    "datetime(2024, 1, 1, tzinfo=ZoneInfo('Europe/Paris')); print('fine')",
    "late imports": "import sqlite3, ssl, unittest, xml.dom, zlib, lzma, csv, email, logging\nprint('fine')",
    "pickled classes": "import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A; print('fine')",
    "big integers": "import sys\nsys.set_int_max_str_digits(0)\nassert len(str(7 ** 20000)) == 16902; print('fine')",
    "random numbers": "import os, secrets, uuid\nos.urandom(4); secrets.token_hex(); uuid.uuid4()\nprint('fine')",
    "an alarm": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: print('fine'))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()",
    "an exit handler": "import atexit\natexit.register(print, 'fine')",
    "exit status 0": "import sys\nprint('fine'); sys.exit()",
    "the main guard": "if __name__ == '__main__':\n    print('fine')",
    "200 MB": "x = bytearray(200 << 20); print('fine')",
}


@pytest.mark.parametrize("code", HONEST.values(), ids=HONEST)
def test_honest_programs_run(code, backend):
    result = run_program(code, timeout_s=20, require=backend)
    assert (result.status, result.stdout.splitlines()[-1:]) == ("ok", ["fine"]), result
    assert result.exit_code == 0 and result.backend == backend


@pytest.mark.parametrize(
    ("expression", "given", "printed"),
    [
        ("input()", "a b\nc\n", "a b"),
        ("sys.stdin.read()", "é\n\n", "é\n\n"),
        ("sys.stdin.buffer.read()", "é", "b'\\xc3\\xa9'"),
        ("[line for line in sys.stdin]", "1\n2", "['1\\n', '2']"),
        ("len(open(0).read())", "x" * 3_000_000, "3000000"),
        ("len(sys.stdin.buffer.read())", "\ud800", "3"),
    ],
)
def test_standard_input(expression, given, printed, backend):
    result = run_program(f"import sys\nprint({expression})", given, require=backend)
    assert (result.status, result.stdout) == ("ok", printed + "\n")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("1 / 0", "exception"),
        ("this is no Python", "exception"),
        ("raise SystemExit(3)", "exception"),
        ("'\ud800'.encode()", "exception"),
        ("\0", "exception"),
        ("while True: pass", "timeout"),
        ("import time; time.sleep(100)", "timeout"),
        ("x = 'x' * (1 << 40)", "memory"),
        ("while True: print('x' * 1000)", "output_limit"),
        ("import os; os.abort()", "crash"),
    ],
)
def test_ways_to_fail(code, status, backend):
    assert run_program(code, timeout_s=0.7, require=backend).status == status


def test_failures_are_explained(backend):
    result = run_program("print('before', flush=True)\n1 / 0", require=backend)
    assert result.stdout == "before\n" and result.exit_code == 1
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert 'File "<program>", line 2' in result.stderr and "jail" not in result.stderr


def test_limits_are_adjustable(backend):
    code = "open('f', 'wb').write(bytes(2 << 20)); x = bytearray(300 << 20)"
    assert run_program(code, require=backend, timeout_s=30).status == "ok"
    assert run_program(code, require=backend, limits=Limits(memory_bytes=200 * MIB)).status == "memory"
    assert run_program(code, require=backend, limits=Limits(file_bytes=MIB)).status == "exception"
    assert run_program("print('x' * 100)", require=backend, limits=Limits(output_bytes=50)).status == "output_limit"


def test_runs_repeat_exactly(backend):
    """Hashes of strings, and so the order of sets, are the same in every run."""
    code = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}), hash('seed'))"
    assert run_program(code, require=backend).stdout == run_program(code, require=backend).stdout


def test_the_environment_is_not_the_trainers(backend, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    result = run_program("import os, sys; print(dict(os.environ), sys.argv, sys.path)", require=backend)
    assert result.status == "ok" and "secret" not in result.stdout.lower() and "rewards/code" not in result.stdout


def test_bad_arguments():
    with pytest.raises(TypeError, match="code must be a string, not NoneType"):
        run_program(None)
    with pytest.raises(TypeError, match="stdin must be a string, not bytes"):
        run_program("", b"")
    with pytest.raises(ValueError, match="wall_s=0"):
        run_program("", timeout_s=0)
    with pytest.raises(ValueError, match="require='weak'; use one of auto, strong"):
        run_program("", require="weak")
    with pytest.raises(ValueError, match="threads=-1"):
        Limits(threads=-1)
