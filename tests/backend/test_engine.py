"""The live engine on a tiny model: against Hugging Face, under memory pressure, under every live policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leankv.backend.attention import require_plain
from leankv.backend.engine import Engine, rehearsed_prompts
from leankv.backend.exact import fp32
from leankv.backend.exactness import compare, reference
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.weights import Loaded
from leankv.serving.errors import InputError
from leankv.serving.policies.registry import policy_named
from leankv.serving.scheduler import SchedulerLimits

from . import tiny

LENGTHS = (5, 40, 100, 33, 17, 70, 128, 64)
PROMPTS = [tiny.prompt_of(length, seed) for seed, length in enumerate(LENGTHS)]
LIVE = (
    "fp16", "fp8", "int8", "int4", "kivi:residual=32", "streaming-llm:sink=4,recent=30", "h2o", "snapkv:budget=48",
    "leankv:alpha_low=0.3", "leankv-r:recompress_every=8,prune=0.1,low_mass=0.5",
)  # fmt: skip
BYTES_A_PAGE = {"fp32": 16 * 2 * 64 * 4}


@pytest.fixture(scope="module")
def references() -> list[list[int]]:
    return [reference(tiny.tiny_model(), prompt, 24) for prompt in PROMPTS]


@pytest.mark.parametrize(("batched", "chunked"), [(16, True), (512, True), (64, False)])
def test_an_exact_cache_gives_hugging_faces_tokens_in_any_batch(
    batched: int, chunked: bool, references: list[list[int]]
) -> None:
    together = tiny.served(tiny.engine_of(fp32(), batched=batched, chunked=chunked), PROMPTS, 24)
    assert together == references
    alone = [tiny.served(tiny.engine_of(fp32(), batched=batched, chunked=chunked), [p], 24)[0] for p in PROMPTS[:3]]
    assert alone == references[:3]


def pool_of(requests: int, tokens: int) -> int:
    """Bytes that hold so many requests of so many tokens, in float32."""
    return requests * 4 * -(-tokens // 16) * (BYTES_A_PAGE["fp32"] + 4) + 200_000


def test_twenty_requests_in_a_pool_for_four_finish_with_the_same_tokens() -> None:
    prompts = [tiny.prompt_of(40 + seed, seed) for seed in range(20)]
    free = tiny.served(tiny.engine_of(fp32(), memory=1 << 25, seqs=20), prompts, 40)
    pressed = tiny.engine_of(fp32(), memory=pool_of(4, 90), seqs=20)
    assert tiny.served(pressed, prompts, 40) == free
    assert pressed.preemptions > 0
    assert max(row.running for row in pressed.log.rows) < 10


@pytest.mark.parametrize("name", LIVE)
def test_every_policy_replays_a_preempted_request_to_the_same_cache(name: str) -> None:
    """Outputs of lossy policies are the same after a preemption, too: the prompt ends where it ended."""
    prompts = [tiny.prompt_of(60 + seed, seed) for seed in range(3)]
    calm = tiny.served(tiny.engine_of(policy_named(name)), prompts, 30)
    engine = tiny.engine_of(policy_named(name))
    requests = [LiveRequest(i, prompt, 30, tiny.TO_LENGTH) for i, prompt in enumerate(prompts)]
    for request in requests:
        engine.add(request)
    while not engine.idle:
        engine.step()
        if len(engine.log.rows) in (8, 11, 30):
            engine.scheduler._preempt_last()
        engine.cache.check_integrity()
    assert engine.preemptions == 3
    agreement = [
        x == y for one, other in zip(requests, calm, strict=True) for x, y in zip(one.output, other, strict=True)
    ]
    # Those that keep everything compute prompt and output at once, where a token sees itself as not yet rounded.
    whole = name in ("fp16", "fp8", "int8", "int4")
    assert sum(agreement) >= (0.5 if whole else 1.0) * len(agreement)


@pytest.mark.parametrize("name", LIVE)
def test_pages_stay_within_what_the_account_expects(name: str) -> None:
    """Twice as many requests as fit: nothing runs short, everything finishes, sizes by rule are met exactly."""
    policy = policy_named(name)
    page = tiny.engine_of(policy, seqs=12).cache.page_bytes
    engine = tiny.engine_of(policy, memory=90 * page + 40_000, seqs=12)
    prompts = [tiny.prompt_of(20 + 9 * seed, seed) for seed in range(10)]
    assert [len(output) for output in tiny.served(engine, prompts, 30)] == [30] * 10
    assert max(row.running for row in engine.log.rows) > 1


def test_sampling_draws_the_same_whoever_is_beside() -> None:
    warm = Sampling(temperature=1.0, top_p=0.9, seed=5, ignore_eos=True)
    alone = tiny.served(tiny.engine_of(fp32()), PROMPTS[:1], 24, warm)
    assert tiny.served(tiny.engine_of(fp32()), PROMPTS, 24, warm)[0] == alone[0]
    assert tiny.served(tiny.engine_of(fp32()), PROMPTS[:1], 24, Sampling(1.0, 0.9, 6, ignore_eos=True)) != alone


def test_sampled_tokens_follow_their_probabilities() -> None:
    from leankv.backend.sampling import choose

    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    request = LiveRequest(0, [1], 1, Sampling(temperature=1.0, top_p=0.9))
    found = [choose([0], logits[None], [(0, request)])[0] for _ in range(4000)]
    drawn = torch.bincount(torch.tensor(found), minlength=4) / 4000
    assert drawn[3] == 0
    torch.testing.assert_close(drawn[:3], torch.tensor([0.5, 0.3, 0.15]) / 0.95, atol=0.03, rtol=0)
    greedy = LiveRequest(0, [1], 1)
    assert choose([2], logits[None], [(0, greedy)]) == {0: 2}


def test_stop_tokens_and_the_end_of_text_end_a_request(references: list[list[int]]) -> None:
    output = references[2]
    stop = output[5]
    first = output.index(stop)
    found = tiny.served(tiny.engine_of(fp32()), [PROMPTS[2]], 24, Sampling(stop_tokens=frozenset([stop])))
    assert found == [output[: first + 1]]
    engine = tiny.engine_of(fp32())
    engine.eos = frozenset([stop])
    assert tiny.served(engine, [PROMPTS[2]], 24, Sampling()) == [output[: first + 1]]


def test_times_and_steps_are_written_down() -> None:
    engine = tiny.engine_of(fp32(), batched=32)
    requests = [LiveRequest(i, prompt, 6, tiny.TO_LENGTH) for i, prompt in enumerate(PROMPTS)]
    for request in requests:
        engine.add(request)
    while not engine.idle:
        engine.step()
    for request in requests:
        assert 0 <= request.admitted_ps < request.first_token_ps < request.finish_ps
    rows = engine.log.rows
    assert all(row.start_ps < row.end_ps for row in rows)
    assert sum(row.prompt_tokens for row in rows) == sum(LENGTHS)
    assert sum(row.sequences for row in rows) == 5 * len(requests)
    assert all(row.sequences + row.prompt_tokens <= 32 for row in rows)


def test_a_request_that_never_fits_is_refused_with_its_reason() -> None:
    engine = tiny.engine_of(fp32(), memory=pool_of(1, 64))
    with pytest.raises(InputError, match="exceed the context of 512"):
        engine.add(LiveRequest(0, tiny.prompt_of(500, 0), 20))
    with pytest.raises(InputError, match="KV pages, the pool has"):
        engine.add(LiveRequest(0, tiny.prompt_of(400, 0), 20))


def test_a_policy_that_does_not_run_live_or_a_pool_without_a_page_is_one_line() -> None:
    for policy, memory, word in ((policy_named("quest"), 1 << 22, "simulated"), (fp32(), 1000, "hold no page")):
        with pytest.raises(InputError, match=word):
            tiny.engine_of(policy, memory=memory)


def test_attention_that_the_cache_does_not_compute_is_refused() -> None:
    require_plain({"softcap": None})
    with pytest.raises(InputError, match="softcap"):
        require_plain({"softcap": 30.0})


def test_a_request_past_a_sliding_window_is_refused_once_the_window_is_known() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64, "vocab_size": tiny.VOCAB}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 40}
    model = MistralForCausalLM(MistralConfig(**shape, **heads)).eval()
    limits = SchedulerLimits(2, 64)
    engine = Engine(Loaded("m", model, None, "made up"), fp32(), limits, memory_bytes=1 << 22, max_tokens=100)
    engine.add(LiveRequest(0, tiny.prompt_of(50, 0), 2, tiny.TO_LENGTH))
    with pytest.raises(InputError, match="pass the sliding window"):
        engine.step()
    assert engine.refusal(30, 10) is None
    assert "sliding window" in str(engine.refusal(30, 11))


@pytest.mark.parametrize("longest", [2, 5, 512])
def test_warming_up_leaves_no_trace(longest: int) -> None:
    engine = tiny.engine_of(fp32())
    engine.max_tokens = longest
    engine.warm_up()
    assert engine.idle and engine.log.rows == [] and engine.log.final == []
    assert engine.cache.measure().free_pages == engine.cache.pages


def test_the_lengths_that_a_warm_up_serves_on_a_gpu() -> None:
    assert rehearsed_prompts(2048) == [1, 16, 33, 128, 256, 512, 1024, 2048]
    assert rehearsed_prompts(700) == [1, 16, 33, 128, 256, 512, 700]
    assert rehearsed_prompts(2) == [1, 2] and rehearsed_prompts(-1) == []


@pytest.mark.parametrize("longest", [1, 4, 40, 512])
def test_a_warm_up_of_every_kind_serves_chunks_after_a_context_and_leaves_no_trace(longest: int) -> None:
    engine = tiny.engine_of(fp32())
    engine.max_tokens = longest
    limits = engine.scheduler.limits
    engine._serve_every_kind()
    chunks = [chunk for row in engine.log.rows for chunk in row.chunks]
    assert chunks == [(0, length) for length in rehearsed_prompts(min(64, longest - 3))] + {
        1: [], 4: [(0, 1)], 40: [(0, 33), (33, 4)], 512: [(0, 33), (33, 32)],
    }[longest]  # fmt: skip
    assert engine.idle and engine.scheduler.limits is limits
    assert engine.cache.measure().free_pages == engine.cache.pages


def test_the_account_hands_out_every_slot_again() -> None:
    engine = tiny.engine_of(fp32(), seqs=2)
    tiny.served(engine, PROMPTS, 4)
    tiny.served(engine, PROMPTS, 4)
    assert engine.cache.requests == {}


def test_every_way_of_serving_is_exact_by_the_benchmarks_own_measure() -> None:
    ways = list(compare(tiny.tiny_model(), PROMPTS, 24))
    assert [(way.requests, way.equal) for way in ways] == [(8, 8)] * 4
    assert ways[-1].way == "preempted" and ways[-1].preemptions > 0
