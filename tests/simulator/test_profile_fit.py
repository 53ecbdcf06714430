from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.serving.policies.registry import policy_named
from leankv.serving.step_fit import StepFit
from leankv.serving.step_samples import StepSample, samples_of, samples_table
from leankv.simulator.clock import ticks
from leankv.simulator.costs import StepCosts
from leankv.simulator.step_time.fit_words import in_words
from leankv.simulator.step_time.least_squares import non_negative_least_squares
from leankv.simulator.step_time.profile import Measured
from leankv.simulator.step_time.profile_fit import fit_steps, held_out, points, predicted_s

seconds = st.floats(1e-4, 1e-2)
fits = st.builds(
    lambda first, slopes, row, decode, sequence, reads, chunk, token, context, pair, prompt, prompt_token, second: (
        StepFit(
            linear_tokens=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            linear_s=tuple(first + np.concatenate([[0], np.cumsum(np.diff(2 ** np.arange(10)) * slopes)])),
            row_s=row,
            decode_s=decode,
            decode_sequence_s=sequence,
            read_s_per_byte=reads,
            chunk_s=chunk,
            chunk_token_s=token,
            context_token_s=context,
            pair_s=pair,
            prompt_s=prompt,
            prompt_token_s=prompt_token,
            second_tier_s=second,
        )
    ),
    seconds,
    st.lists(st.floats(1e-5, 1e-3), min_size=9, max_size=9),
    seconds,
    seconds,
    seconds,
    st.tuples(st.floats(1e-11, 1e-9), st.floats(1e-11, 1e-9)),
    seconds,
    st.floats(1e-6, 1e-4),
    st.floats(1e-7, 1e-5),
    st.floats(1e-9, 1e-7),
    seconds,
    st.floats(1e-6, 1e-4),
    seconds,
)


def designed(policy: str, seed: int) -> list[StepSample]:
    """Decode batches, prompts and both together; seconds are still to come."""
    draw = np.random.default_rng(seed)
    steps: list[tuple[list[int], list[tuple[int, int, bool]]]] = []
    for batch in (1, 2, 3, 4, 6, 8, 12, 16):
        steps += [(draw.integers(16, 2000, batch).tolist(), []) for _ in range(3)]
    for size in (1, 2, 3, 4, 7, 8, 12, 16, 24, 32, 48, 64, 100, 128, 200, 256, 400, 512):
        for context in (0, int(draw.integers(1, 1500))):
            steps += [([], [(size, context, last)]) for last in (True, False)]
    steps += [([], [(size, 0, True)] * 3) for size in (5, 20, 100)]
    for _ in range(20):
        chunk = int(draw.integers(1, 400)), int(draw.integers(0, 1000)), bool(draw.integers(2))
        steps.append((draw.integers(16, 2000, draw.integers(1, 12)).tolist(), [chunk]))
    return [_sample(policy, number, *step) for number, step in enumerate(steps)]


def _sample(policy: str, number: int, contexts: list[int], chunks: list[tuple[int, int, bool]]) -> StepSample:
    ended = [size + context for size, context, last in chunks if last]
    return StepSample(
        policy=policy,
        regime="mixed" if contexts and chunks else "prefill" if chunks else "decode",
        point=number,
        round=0,
        seconds=0.0,
        reference_s=1e-3,
        reference=1.0,
        pace=1.0,
        kept=True,
        tokens=len(contexts) + sum(size for size, _, _ in chunks),
        rows=len(contexts) + len(ended),
        decoding=len(contexts),
        attended=sum(contexts),
        read_bytes_tier0=float(sum(min(c, 200) for c in contexts)) * 9000,
        read_bytes_tier1=float(sum(max(c - 200, 0) for c in contexts)) * 5000,
        chunks=len(chunks),
        chunk_tokens=sum(size for size, _, _ in chunks),
        context_tokens=sum(context for _, context, _ in chunks),
        pairs=sum(size * context + size * (size + 1) / 2 for size, context, _ in chunks),
        completed=len(ended),
        completed_tokens=sum(ended),
        moved=0,
        pages=0,
    )


def timed(fit: StepFit, samples: list[StepSample], noise: float = 0.0, seed: int = 0) -> list[StepSample]:
    draw = np.random.default_rng(seed)
    return [
        replace(sample, seconds=predicted_s(fit, sample) * float(np.exp(noise * draw.standard_normal())))
        for sample in samples
    ]


@given(fits)
@settings(max_examples=20, deadline=None)
def test_a_known_fit_predicts_as_before_what_was_not_measured(fit: StepFit) -> None:
    """Terms that grow alike trade places, so what counts is what they say together of other steps."""
    found = fit_steps(points(timed(fit, designed("leankv", 1))))["leankv"]
    for sample in designed("leankv", 2):
        assert predicted_s(found, sample) == pytest.approx(predicted_s(fit, sample), rel=0.02)


@given(fits, st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_noise_of_three_per_cent_stays_noise(fit: StepFit, seed: int) -> None:
    samples = [repeat for s in range(3) for repeat in timed(fit, designed("leankv", 1), 0.03, seed + s)]
    found = fit_steps(points(samples))["leankv"]
    errors = [predicted_s(found, each) / predicted_s(fit, each) - 1 for each in designed("leankv", 2)]
    assert np.median(np.abs(errors)) < 0.02
    assert np.quantile(np.abs(errors), 0.9) < 0.06


@given(fits)
@settings(max_examples=5, deadline=None)
def test_held_out_errors_are_small_by_regime(fit: StepFit) -> None:
    told = held_out(points(timed(fit, designed("leankv", 1), 0.01)))["leankv"]
    assert set(told) == {"decode", "prefill", "mixed"}
    assert sum(each.points for each in told.values()) == len(designed("leankv", 1))
    for each in told.values():
        assert each.median < 0.05 and abs(each.bias) < 0.1


def test_three_rows_may_take_longer_than_four() -> None:
    sizes = (1, 2, 3, 4, 6, 7, 8, 512)
    lasting = (0.05, 0.1, 0.19, 0.15, 0.18, 0.19, 0.16, 1.6)
    fit = StepFit(sizes, lasting, 0, 2e-3, 1e-3, (1e-10, 0.0), 0, 0, 0, 0, 0, 0)
    found = fit_steps(points(timed(fit, designed("fp16", 1))))["fp16"]
    for size, seconds in zip(sizes[:-1], lasting, strict=False):
        assert found.linear(size) == pytest.approx(seconds, rel=0.03), size


def test_a_second_tier_costs_where_there_is_one() -> None:
    fit = StepFit((1, 512), (0.01, 0.6), 0, 2e-3, 1e-3, (1e-10, 1e-10), 0, 0, 0, 0, 0, 0, second_tier_s=8e-3)
    samples = designed("leankv", 1)
    short = [replace(each, read_bytes_tier0=9000.0 * each.decoding, read_bytes_tier1=0.0) for each in samples[::2]]
    renumbered = [replace(each, point=each.point + 1000) for each in short]
    found = fit_steps(points(timed(fit, samples + renumbered)))["leankv"]
    assert found.second_tier_s == pytest.approx(8e-3, rel=0.02)
    assert found.decode(1, (9000.0, 1.0)) - found.decode(1, (9000.0, 0.0)) == pytest.approx(8e-3, rel=0.02)


def test_policies_share_what_is_common_and_keep_what_is_their_own() -> None:
    common = {
        "linear_tokens": (1, 8, 64, 512),
        "linear_s": (0.01, 0.02, 0.1, 0.6),
        "row_s": 1e-3,
        "pair_s": 1e-8,
        "chunk_s": 2e-3,
        "chunk_token_s": 0.0,
        "context_token_s": 0.0,
        "decode_sequence_s": 1e-3,
    }
    plain = StepFit(**common, decode_s=2e-3, read_s_per_byte=(1e-10, 0.0), prompt_s=0.0, prompt_token_s=0.0)
    dear = StepFit(**common, decode_s=20e-3, read_s_per_byte=(3e-10, 5e-10), prompt_s=30e-3, prompt_token_s=1e-4)
    both = timed(plain, designed("fp16", 1)) + timed(dear, designed("leankv", 1))
    found = fit_steps(points(both))
    assert found["fp16"].linear_s == found["leankv"].linear_s
    # Almost every batch has a second tier, so only the sum of the two terms is known.
    plain_s, dear_s = (found[name].decode_s + found[name].second_tier_s for name in ("fp16", "leankv"))
    assert dear_s - plain_s == pytest.approx(18e-3, rel=0.05)
    assert found["leankv"].read_s_per_byte == pytest.approx((3e-10, 5e-10), rel=0.02)
    assert found["leankv"].prompt_s == pytest.approx(30e-3, rel=0.05)
    assert found["fp16"].prompt_s < 1e-3


def test_what_is_done_every_so_many_steps_is_told_apart_and_shared_out() -> None:
    """KIVI's window passes a block on: one step in 32 of a sequence. A median would never see it."""
    plain = StepFit((1, 512), (0.01, 0.5), 1e-3, 1e-3, 1e-3, (1e-10, 1e-10), 1e-3, 0.0, 0.0, 1e-9, 0.0, 0.0)
    fit = replace(plain, move_s=60e-3, move_every=32)
    moving = [replace(each, moved=each.point % 3 == 0) for each in designed("kivi", 1) if each.decoding]
    rest = [each for each in designed("kivi", 1) if not each.decoding]
    found = fit_steps(points(timed(fit, [*moving, *rest])), {"kivi": 32})["kivi"]
    assert found.move_s == pytest.approx(60e-3, rel=0.05)
    assert found.sequence_s == pytest.approx(1e-3 + 60e-3 / 32, rel=0.1)
    assert found.decode(4, (0, 0)) == pytest.approx(fit.decode(4, (0, 0)), rel=0.1)


def test_blocks_that_a_chunk_quantizes_are_told_apart_from_its_tokens() -> None:
    """KIVI's first tokens of a prompt stay in its window; whoever spreads the blocks over all is off at both ends."""
    plain = StepFit((1, 512), (0.01, 0.5), 1e-3, 1e-3, 1e-3, (1e-10, 1e-10), 1e-3, 1e-5, 0.0, 1e-9, 0.0, 0.0)
    fit = replace(plain, block_token_s=9e-4)
    found = fit_steps(points(timed(fit, designed("kivi", 1))))["kivi"]
    assert found.block_token_s == pytest.approx(9e-4, rel=0.05)
    policy, model = policy_named("kivi"), Measured(fit, "profile")
    assert model.chunk_work_s(policy, 128, 0) == 0.0
    assert model.chunk_work_s(policy, 256, 0) == pytest.approx(128 * 9e-4)
    assert model.chunk_work_s(policy, 64, 192) == pytest.approx(64 * 9e-4)
    assert model.chunk_work_s(policy_named("fp16"), 256, 0) == 0.0
    costs = StepCosts(model, policy, 512, 16)
    added = costs.prefill(256, 0, True) - StepCosts(Measured(plain, "profile"), policy, 512, 16).prefill(256, 0, True)
    assert added == pytest.approx(ticks(128 * 9e-4), abs=1)


@given(fits, st.floats(0.25, 4.0))
@settings(max_examples=20, deadline=None)
def test_a_machine_of_another_pace_takes_so_many_times_as_long_for_every_step(fit: StepFit, pace: float) -> None:
    slower = replace(fit, move_s=1e-3, move_every=32, block_token_s=1e-4).slower(pace)
    plain = replace(fit, move_s=1e-3, move_every=32, block_token_s=1e-4)
    assert slower.move_every == 32 and slower.linear_tokens == plain.linear_tokens
    for sample in (*designed("kivi", 2)[:8], *designed("kivi", 2)[-8:]):
        assert predicted_s(slower, sample) == pytest.approx(pace * predicted_s(plain, sample))


def test_disturbed_samples_do_not_count() -> None:
    fit = StepFit((1, 512), (0.01, 0.5), 1e-3, 1e-3, 1e-3, (1e-10, 1e-10), 1e-3, 0.0, 0.0, 1e-9, 0.0, 0.0)
    clean = timed(fit, designed("fp16", 1))
    disturbed = [replace(sample, seconds=5 * sample.seconds, kept=False, reference=5.0) for sample in clean]
    assert fit_steps(points(clean + disturbed)) == fit_steps(points(clean))


def test_too_few_sizes_are_told() -> None:
    only = [sample for sample in designed("fp16", 1) if sample.tokens == 1]
    with pytest.raises(InputError, match="several sizes"):
        fit_steps(points([replace(sample, seconds=1.0) for sample in only]))


@given(st.integers(1, 8), st.integers(0, 10_000))
@settings(deadline=None)
def test_least_squares_meets_the_conditions_of_an_optimum(columns: int, seed: int) -> None:
    """Karush, Kuhn and Tucker: no gradient where a coefficient is free, none that wants to rise where it is 0."""
    draw = np.random.default_rng(seed)
    matrix = draw.standard_normal((12, columns)) * 10.0 ** draw.integers(-9, 9, columns)
    target = draw.standard_normal(12)
    found = non_negative_least_squares(matrix, target)
    assert (found >= 0).all()
    gradient = matrix.T @ (target - matrix @ found) / np.linalg.norm(matrix, axis=0)
    assert gradient.max() < 1e-7
    assert np.abs(gradient[found > 0]).max(initial=0.0) < 1e-7


def test_least_squares_agrees_with_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    draw = np.random.default_rng(3)
    for _ in range(20):
        matrix, target = draw.standard_normal((30, 10)), draw.standard_normal(30)
        assert non_negative_least_squares(matrix, target) == pytest.approx(optimize.nnls(matrix, target)[0], abs=1e-8)


def test_steps_are_written_and_read() -> None:
    samples = designed("kivi", 4)
    assert samples_of(samples_table(samples)) == samples
    with pytest.raises(InputError, match="no column 'reference'"):
        samples_of(samples_table(samples).drop_columns(["reference"]))


def test_a_fit_is_told_in_words() -> None:
    fit = StepFit((1, 8, 512), (0.02, 0.03, 0.6), 1e-3, 2e-3, 0.0, (1e-9, 0.0), 0.0, 0.0, 0.0, 1e-9, 0.0, 0.0)
    assert in_words(fit, {0: "the cache"}) == [
        "a step of 1 token takes 20 ms, of 8 30 ms, 512 600 ms: linear layers and the host's work",
        "a sequence that gets a token takes 1 ms: output head and sampling",
        "decoding takes 2 ms a step, 1.05 ms a MiB read of the cache: the cache's own work and attention",
        "a prompt's chunk takes 1 ms a million pairs attended: beside its layers",
    ]


def test_heavy_noise_does_not_make_a_fit_too_fast() -> None:
    """Sums are what a run adds up to; errors relative to noisy times alone would make them a tenth too small."""
    fit = StepFit(
        (1, 2, 64, 512), (0.1, 0.12, 0.4, 1.5), 0.0, 0.05, 5e-3, (1e-9, 1e-9), 0.02, 0.0, 1e-5, 1e-7, 0.01, 0.0
    )
    samples = [each for seed in range(4) for each in timed(fit, designed("leankv", seed), 0.35, seed)]
    single = [replace(each, point=number) for number, each in enumerate(samples)]
    found = fit_steps(points(single))["leankv"]
    for regime in ("decode", "prefill", "mixed"):
        mine = [each for each in single if each.regime == regime]
        assert sum(predicted_s(found, each) for each in mine) == pytest.approx(
            sum(each.seconds for each in mine), rel=0.05
        )
