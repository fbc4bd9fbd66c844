from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from r1lab.config import GRPOConfig
from r1lab.grpo.collect import Collector, PromptStream, is_informative
from r1lab.types import Completion, Prompt

PROMPTS = [Prompt(f"p{i}", [i + 10], {"solved": i % 2}) for i in range(12)]


def _sample(prompt_ids, seeds):
    return [[Completion([seed % 7], [-1.0], "stop") for seed in row] for row in seeds]


def _reward(completions, solved, **columns):
    """Half right on unsolved problems; solved ones are right every time."""
    return [1.0 if solved[i] else float(i % 2) for i in range(len(completions))]


def _collector(world_size=1, rank=0, gather=list, **settings):
    config = GRPOConfig(num_generations=4, generation_batch_size=16, reward_funcs=["x"], **settings)
    stream = PromptStream(PROMPTS, config.seed)
    return Collector(config, stream, _sample, lambda ids: str(ids), [_reward], gather, rank, world_size)


def test_the_stream_visits_every_prompt_once_an_epoch_in_another_order():
    stream = PromptStream(PROMPTS, seed=0)
    first, second = (["".join(p.text) for _, p in stream.take(12)] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(p.text for p in PROMPTS)
    assert first != second


def test_the_stream_resumes_from_its_position():
    whole = [p.text for _, p in PromptStream(PROMPTS, 0).take(30)]
    part = PromptStream(PROMPTS, 0, position=17)
    assert [p.text for _, p in part.take(13)] == whole[17:]


def test_processes_share_the_prompts_of_one():
    alone = _collector().collect().sampled
    shared = [_collector(2, rank, gather=lambda rows: list(rows) * 2).collect().sampled for rank in (0, 1)]
    assert [g.prompt.text for g in alone][0::2] == [g.prompt.text for g in shared[0]]
    assert [g.prompt.text for g in alone][1::2] == [g.prompt.text for g in shared[1]]
    ids = [[r.completion.token_ids for r in g.rollouts] for g in alone]
    assert ids[1::2] == [[r.completion.token_ids for r in g.rollouts] for g in shared[1]]


def test_dynamic_sampling_replaces_groups_of_equal_rewards():
    plain = _collector().collect()
    assert not all(is_informative(group) for group in plain.trained)
    dynamic = _collector(dynamic_sampling=True, max_resamples=10).collect()
    assert all(is_informative(group) for group in dynamic.trained)
    assert len(dynamic.trained) == 4
    assert len(dynamic.sampled) > len(dynamic.fresh) == 4


def test_dynamic_sampling_gives_up_after_max_resamples_and_keeps_the_count():
    collector = _collector(dynamic_sampling=True, max_resamples=2)
    collector.reward_funcs = [lambda completions, **columns: [1.0] * len(completions)]
    collection = collector.collect()
    assert len(collection.sampled) == 12 and len(collection.trained) == 4
    assert all(r.advantage == 0 for group in collection.trained for r in group.rollouts)


def _collect_together(world_size, **settings):
    """What several processes, here threads, train on in a step."""
    barrier, boxes = Barrier(world_size, timeout=30), [None] * world_size

    def run(rank):
        def gather(rows):
            boxes[rank] = list(rows)
            barrier.wait()
            everything = [row for box in boxes for row in box]
            barrier.wait()
            return everything

        return _collector(world_size, rank, gather, dynamic_sampling=True, **settings).collect().trained

    with ThreadPoolExecutor(world_size) as pool:
        return [group for groups in pool.map(run, range(world_size)) for group in groups]


@pytest.mark.parametrize("max_resamples", [0, 1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_dynamic_sampling_trains_on_the_same_groups_whatever_the_number_of_processes(max_resamples, seed):
    chosen = []
    for world_size in (1, 2, 3, 5):
        groups = _collect_together(world_size, max_resamples=max_resamples, seed=seed)
        assert len(groups) == 4
        chosen.append(sorted((g.prompt.text, g.rollouts[0].completion.token_ids[0]) for g in groups))
    assert all(other == chosen[0] for other in chosen)


@pytest.mark.parametrize(("scale", "expected"), [("none", 0.5), ("group", 0.5 / (1 / 3) ** 0.5)])
def test_advantages_are_filled_in(scale, expected):
    groups = _collector(scale_rewards=scale).collect().trained
    unsolved = next(group for group in groups if not group.prompt.columns["solved"])
    assert [r.advantage for r in unsolved.rollouts] == pytest.approx([-expected, expected] * 2, rel=1e-3)
