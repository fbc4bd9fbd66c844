"""Does the program in a completion pass its tests?"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.code.execution import DEFAULT_TIMEOUT_S
from rewards.code.extract import defines, extract_code
from rewards.code.pool import get_sandbox
from rewards.code.tasks import TEST_COLUMNS, Task, read_task
from rewards.code.testing import run_tests
from rewards.text import check_length, completion_text, find_column

TASK_COLUMNS = (*TEST_COLUMNS, "entry_point", "setup", "test_imports", "test_setup_code")


def code_reward(
    prompts: Sequence[Any] | None = None,
    completions: Sequence[Any] = (),
    completion_ids: Sequence[Any] | None = None,
    *,
    partial_credit: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    require: str = "auto",
    log_extra: Callable[[str, list], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 where the completion's program (`extract_code`) passes every test of its row, 0.0 where it does not.

    The tests come from the first of these columns that was passed:

    - `verification_info`: open-r1's {"language": "python", "test_cases": [..]}, as a dict or as JSON
    - `tests`: lists of what `run_tests` takes, with `entry_point` and `setup` where needed
    - `test` with `entry_point`: HumanEval's `check(candidate)`; a completion without fences continues the prompt
    - `test_list`: MBPP's asserts, with `test_imports` or `test_setup_code`

    partial_credit: the share of tests passed instead. timeout_s: of each test. require: see `sandbox_report`; pass
    "strong" to refuse machines where programs cannot be isolated. log_extra, TRL's hook, gets each row's reason as the
    column "code_reason": the status of `run_tests`, "no_program" or "no_tests".

    A row gets None when it has no Python tests, or when the test or the sandbox failed rather than the program.
    Raises TypeError without any of the columns, ValueError for one of another length or a malformed row,
    SandboxUnavailable when the machine cannot isolate as required.
    """
    size = len(completions)
    find_column(columns, TEST_COLUMNS, size)
    column = next(name for name in TEST_COLUMNS if columns.get(name) is not None)
    rows = _rows(columns, size)
    stubs = prompts if prompts is not None else [None] * size
    tasks = [read_task(column, row, prompt) for row, prompt in zip(rows, stubs, strict=True)]
    texts = [completion_text(completion) for completion in completions]

    def score(text: str, task: Task | None) -> tuple[float | None, str]:
        return (None, "no_tests") if task is None else _score(text, task, partial_credit, timeout_s, require)

    # The threads wait for processes; the sandbox decides how many of those run at once.
    with ThreadPoolExecutor(get_sandbox(require).size) as executor:
        scored = list(executor.map(score, texts, tasks))
    if log_extra is not None:
        log_extra("code_reason", [reason for _, reason in scored])
    return [value for value, _ in scored]


def _prepare(*, require: str = "auto", **options: Any) -> None:
    """Raises SandboxUnavailable when this machine cannot isolate as required."""
    if require != "auto":
        get_sandbox(require)


code_reward.prepare = _prepare


def _score(text: str, task: Task, partial_credit: bool, timeout_s: float, require: str) -> tuple[float | None, str]:
    program = _program(text, task)
    if program is None:
        return 0.0, "no_program"
    report = run_tests(
        program,
        task.tests,
        entry_point=task.entry_point,
        setup=task.setup,
        timeout_s=timeout_s,
        require=require,
        tuple_as_list=task.tuple_as_list,
        stop_at_failure=not partial_credit,
    )
    if not report.is_conclusive:
        return None, report.status
    share = report.passed / report.total if partial_credit else float(report.status == "ok")
    return share, report.status


def _program(text: str, task: Task) -> str | None:
    """The source to test. With HumanEval's stub in front, whose helpers it may use and whose body it may continue."""
    code = extract_code(text, task.entry_point)
    if code is None or not task.stub:
        return code
    if task.entry_point and defines(code, task.entry_point):
        return f"{task.stub}\n\n{code}"
    return task.stub + code


def _rows(columns: Mapping[str, Any], size: int) -> list[dict[str, Any]]:
    present = {name: check_length(name, columns[name], size) for name in TASK_COLUMNS if columns.get(name) is not None}
    return [{name: column[index] for name, column in present.items()} for index in range(size)]
