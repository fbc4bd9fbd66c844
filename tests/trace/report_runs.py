"""Small runs on disk for the tests of the report."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from r1lab.trace import MetricsLog, write_completions
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<!-- <script> </SCRIPT > --> <img src=x onerror='window.hacked = 2'>",
    "%%script%% %%data%% &lt;b&gt; &amp; \"quotes\" 'single' \\u003c \\",
    "line\u2028separator\u2029and\x00null \x1b[31m \u202eright to left",
    "\U0001f600 wait \U0001f600\ud800 wait",
    "<think> javascript:window.hacked=3 </think><answer><a href='javascript:window.hacked=4'>x</a></answer>",
]
"""What a completion may hold to break the page; one has a lone surrogate, which the recorder turns into "?"."""

AHA = "<think> 3 + 6 = 9 off 1 . wait 3 + 5 = 8 off 0 . yes </think> <answer> 3 + 5 </answer>"
INVERSE = "<think> 3 + 5 = 8 off 0 . wait 3 + 6 = 9 off 1 </think> <answer> 3 + 6 </answer>"
LUCKY = "<think> 3 + 6 = 9 off 1 . no </think> <answer> 3 + 5 </answer>"
PLAIN = "<think> 3 + 5 = 8 off 0 . yes </think> <answer> 3 + 5 </answer>"
WRONG = "<think> maybe 6 </think> <answer> 6 </answer>"


def write_tokenizer(file: Path, texts: list[str]) -> Tokenizer:
    """A tokenizer of the texts' words."""
    words = dict.fromkeys(word for text in texts for word in text.split())
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | {word: i + 1 for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with a space
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(tokenizer.to_str())
    return tokenizer


def build_group(prompt: str, texts: list[str], right: list[bool], tokenizer: Tokenizer) -> RolloutGroup:
    """A group with an accuracy and a format reward; only texts with a `<think>` are well formed."""
    rollouts = []
    for text, is_right in zip(texts, right, strict=True):
        rewards = {"accuracy_reward": float(is_right), "format_reward": float("<think>" in text)}
        token_ids = tokenizer.encode(text.encode("utf-8", "replace").decode()).ids
        logps = [-0.5 * index for index in range(len(token_ids))]
        reward = rewards["accuracy_reward"] + 0.2 * rewards["format_reward"]
        rollouts.append(Rollout(Completion(token_ids, logps, "stop"), text, rewards, reward))
    mean = sum(rollout.reward for rollout in rollouts) / len(rollouts)
    for rollout in rollouts:
        rollout.advantage = rollout.reward - mean
    return RolloutGroup(Prompt(prompt, [1]), rollouts)


def write_run(path: Path, *, num_steps: int = 4, hostile: bool = False, extra: str = "") -> Path:
    """A run with two groups of four completions a step, a checkpoint's tokenizer and a config.

    Args:
        hostile: a third group of `HOSTILE` completions, and a hostile prompt.
        extra: appended to the plain completions, to make the run larger.
    """
    texts = [AHA, INVERSE, LUCKY, PLAIN + extra, WRONG]
    tokenizer = write_tokenizer(path / "checkpoints" / "step_00002" / "tokenizer.json", texts)
    (path / "config.yaml").write_text(f"task: pick_two\nmax_steps: {num_steps}\n")
    with MetricsLog(path / "metrics.jsonl") as log:
        log.append({"step": 0, "eval/n3/accuracy": 0.1})
        for step in range(1, num_steps + 1):
            log.append({"step": step, "reward": 0.1 * step, "reflection/rate": 0.5, "eval/n3/accuracy": 0.2 * step})
            groups = [
                build_group(f"3 5 6 target {7 + step}", [AHA, WRONG, PLAIN + extra, INVERSE], [1, 0, 1, 0], tokenizer),
                build_group("3 5 6 target 8", [LUCKY, WRONG, PLAIN + extra, WRONG], [1, 0, 1, 0], tokenizer),
            ]
            if hostile:
                groups.append(build_group(HOSTILE[0], HOSTILE, [1, 0, 1, 0, 1, 0], tokenizer))
            write_completions(path, step, groups)
    return path


def read_data(page: Path) -> dict:
    """The data of a written page."""
    text = page.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])
