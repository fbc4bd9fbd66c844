import pytest

from rewards.code import run_tests

SQUARE = "def square(n):\n    return n * n\n"


def call(args, expected, **more):
    return {"type": "call", "args": args, "expected": expected, **more}


def assertion(code):
    return {"type": "assert", "code": code}


def statuses(code, tests, **options):
    return [result.status for result in run_tests(code, tests, **options).results]


def test_calls(backend):
    tests = [call([3], 9), call([4], 17), call([], 4, kwargs={"n": 2})]
    report = run_tests(SQUARE, tests, entry_point="square", require=backend)
    assert (report.passed, report.total, report.status, report.backend) == (2, 3, "wrong", backend)
    assert [result.is_passed for result in report.results] == [True, False, True]


def test_methods_and_several_functions(backend):
    code = "class Solution:\n    def twice(self, n):\n        return 2 * n\n" + SQUARE
    tests = [call([3], 6, entry_point="Solution().twice"), call([3], 9)]
    assert statuses(code, tests, entry_point="square", require=backend) == ["ok", "ok"]


def test_state_lives_as_long_as_the_process(backend):
    code = "import os\nseen = []\ndef f(n):\n    seen.append(n)\n    return len(seen) if n else os._exit(0)\n"
    tests = [call([1], 1), call([1], 2), call([0], 0), call([1], 1)]
    assert statuses(code, tests, entry_point="f", require=backend) == ["ok", "ok", "crash", "ok"]


def test_values_keep_their_types(backend):
    values = [None, True, 1, -(10**40), 0.1, float("inf"), "é\ud800", b"\x00", 2 + 1j]
    values += [[1, [2]], (1,), {1, 2}, frozenset("a"), {"a": {1: (2,)}}]
    tests = [call([value], value) for value in values]
    assert run_tests("def same(x):\n    return x\n", tests, entry_point="same", require=backend).status == "ok"


def test_scripts_get_a_process_each(backend):
    code = "import os\nprint(os.path.exists('left'))\nopen('left', 'w').close()\nprint(input())"
    tests = [{"type": "stdin_stdout", "input": text, "output": f"False\n{text}"} for text in ("a", "b")]
    assert statuses(code, tests, require=backend) == ["ok", "ok"]


def test_kinds_of_tests_mix(backend):
    code = SQUARE + "import sys\nprint(len(sys.stdin.read()))\n"
    tests = [call([2], 4), {"type": "stdin_stdout", "input": "ab", "output": "2"}, assertion("assert square(5) == 25")]
    assert statuses(code, tests * 2, entry_point="square", require=backend) == ["ok"] * 6


def test_output_modes(backend):
    test = {"type": "stdin_stdout", "input": "", "output": "1 0.5\n2"}
    for code, passing in [
        ("print('1 0.5 \\n2\\n')", {"lines", "tokens", "floats"}),
        ("print(1, 0.5, 2)", {"tokens", "floats"}),
        ("print(1, 0.50000000001, 2)", {"floats"}),
        ("print(1, 0.5)", set()),
    ]:
        for mode in ("lines", "tokens", "floats"):
            report = run_tests(code, [test], compare_output=mode, require=backend)
            assert report.passed == (mode in passing), (code, mode)


def test_asserts_call_the_program_by_name(backend):
    tests = [
        assertion("assert square(3) == 9"),
        assertion("assert [square(i) for i in range(4)] == [0, 1, 4, 9]"),
        assertion("def check(f):\n    assert f(2) == 4\ncheck(square)"),
        assertion("assert square(3) == 10"),
        assertion("try:\n    square('a')\n    assert False\nexcept TypeError:\n    pass"),
    ]
    assert statuses(SQUARE, tests, require=backend) == ["ok", "ok", "ok", "wrong", "ok"]


def test_asserts_use_the_setup_and_keep_state(backend):
    tests = [assertion("kept = helper(square(3))"), assertion("assert kept + square(0) == 10")]
    report = run_tests(SQUARE, tests, setup="def helper(n):\n    return n + 1\n", require=backend)
    assert report.status == "ok"


def test_the_entry_point_replaces_what_setup_or_python_call_so(backend):
    stub = "def square(n):\n    pass\n"
    assert run_tests(SQUARE, [assertion("assert square(3) == 9")], entry_point="square", setup=stub).status == "ok"
    code = "def sum(a, b):\n    return a * b\n"
    assert run_tests(code, [assertion("assert sum(3, 4) == 12")], entry_point="sum", require=backend).status == "ok"


def test_programs_do_not_replace_what_tests_use(backend):
    code = "def solve(n):\n    return 0\ndef abs(x):\n    return 0\ndef close(a, b):\n    return True\n"
    tests = [assertion("assert abs(solve(1) - 5) < 1"), assertion("assert close(solve(1), 5)")]
    setup = "def close(a, b):\n    return a == b\n"
    assert statuses(code, tests, setup=setup, require=backend) == ["wrong", "wrong"]


@pytest.mark.parametrize(
    "code", ["assert True", "import no_such_module", "assert square.attribute", "assert square(print) == 1", "x ="]
)
def test_broken_tests_are_not_the_programs_fault(code, backend):
    report = run_tests(SQUARE, [assertion(code), assertion("assert square(1) == 1")], require=backend)
    assert [result.status for result in report.results] == ["test_error", "not_run"]
    assert not report.is_conclusive


def test_broken_setup_is_not_the_programs_fault(backend):
    report = run_tests(SQUARE, [assertion("assert square(1) == 1")], setup="1 / 0", require=backend)
    assert report.status == "test_error" and "ZeroDivisionError" in report.results[0].detail


def test_programs_that_do_not_load(backend):
    for code in ("def square(n)", "import no_such_module", "raise SystemExit"):
        for tests in ([call([1], 1)] * 2, [assertion("assert square(1) == 1")] * 2):
            assert statuses(code, tests, entry_point="square", require=backend) == ["exception"] * 2


def test_a_timeout_ends_all(backend):
    code = "def f(n):\n    while n: pass\n    return n\n"
    tests = [call([0], 0), call([1], 1), call([0], 0)]
    assert statuses(code, tests, entry_point="f", timeout_s=0.5, require=backend) == ["ok", "timeout", "not_run"]
    tests = [assertion(f"assert f({n}) == 0") for n in (0, 1, 0)]
    assert statuses(code, tests, timeout_s=0.5, require=backend) == ["ok", "timeout", "not_run"]


def test_a_test_that_hangs_ends(backend):
    tests = [assertion("square(1)\nwhile True: pass")]
    assert statuses(SQUARE, tests, timeout_s=0.5, require=backend) == ["timeout"]


def test_stop_at_failure(backend):
    tests = [call([3], 9), call([3], 0), call([3], 9)]
    options = {"entry_point": "square", "require": backend}
    assert statuses(SQUARE, tests, **options) == ["ok", "wrong", "ok"]
    assert statuses(SQUARE, tests, stop_at_failure=True, **options) == ["ok", "wrong", "not_run"]


def test_tuples_stand_for_lists_only_when_asked(backend):
    code = "def f():\n    return (1, (2,))\n"
    for tuple_as_list, passed in ((False, 0), (True, 1)):
        tests = [call([], [1, [2]])]
        report = run_tests(code, tests, entry_point="f", tuple_as_list=tuple_as_list, require=backend)
        assert report.passed == passed


@pytest.mark.parametrize(
    ("tests", "error", "message"),
    [
        ([], ValueError, "tests is empty"),
        ([{"type": "unit"}], ValueError, "tests.0. must be a dict with 'type' one of call, stdin_stdout, assert"),
        (["assert f()"], ValueError, "tests.0. must be a dict"),
        ([{"type": "call", "args": [1]}], ValueError, "lacks expected"),
        ([{"type": "call", "args": 1, "expected": 1}], TypeError, "'args'. must be a list, not int"),
        ([{"type": "call", "args": [1], "expected": 1}], ValueError, "pass entry_point"),
        ([{"type": "stdin_stdout", "input": 1, "output": ""}], TypeError, "'input'. must be a string"),
        ([{"type": "assert", "code": None}], TypeError, "'code'. must be a string"),
        ([{"type": "call", "args": [], "expected": object(), "entry_point": "f"}], TypeError, "type object"),
    ],
)
def test_malformed_tests(tests, error, message):
    with pytest.raises(error, match=message):
        run_tests(SQUARE, tests)
