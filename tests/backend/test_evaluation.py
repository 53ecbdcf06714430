"""The evaluation on a tiny model: exact where the cache is, shared prompts change nothing, twice is the same."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leankv.backend.evaluation.answers import Answers
from leankv.backend.evaluation.chat import begun, common_prefix
from leankv.backend.evaluation.choice import Choice
from leankv.backend.evaluation.evaluate import Evaluation, evaluate
from leankv.backend.evaluation.follow import follow
from leankv.backend.evaluation.items import Item, Outcome, Task
from leankv.backend.evaluation.needle import LEAD, Needle
from leankv.backend.evaluation.perplexity import Perplexity
from leankv.backend.evaluation.shared_prompts import SharedPrompts
from leankv.backend.exact import fp32
from leankv.backend.texts import Text
from leankv.backend.weights import Loaded
from leankv.serving.errors import InputError
from leankv.serving.models import model_of_config
from leankv.serving.policies.registry import policy_named, registry
from leankv.serving.quality import Quality, load_quality

from . import tiny

LIVE = [name for name, policy in registry.items() if policy.live]
VARIANTS = [
    *LIVE,
    "leankv:key_transform=rope-centred+rotated",
    "uniform:format=K2V4,key_transform=centred+rotated",
    "leankv:key_transform=rotated",
    "kivi:bits=4",
]
TEXT = Text(
    "story", "".join(f"On day {n} the ship met {n * n % 89} gulls and turned {n % 7} times. " for n in range(400))
)


class Letters:
    """A tokenizer of one letter a token, within the tiny model's vocabulary."""

    bos_token, bos_token_id, chat_template = "", None, None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % (tiny.VOCAB - 1) + 1 for letter in text]}

    def decode(self, tokens: list[int], **_: Any) -> str:
        return " ".join(map(str, tokens))


def tiny_loaded() -> Loaded:
    return replace(tiny.tiny_model(), tokenizer=Letters())


def evaluation(policies: list[str], tasks: list[Task]) -> Evaluation:
    loaded = tiny_loaded()
    model = model_of_config(loaded.model.config.to_dict(), "tiny", "made up")
    chosen = [policy_named(name) for name in policies]
    return Evaluation(loaded, model, {"name": "cpu"}, {}, chosen, tasks, "quick", key_means=tiny.key_means(), batch=3)


def some_tasks() -> list[Task]:
    return [
        Perplexity([TEXT], windows=5, prefix=150, scored=12),
        Needle([TEXT], contexts=(200,), depths=(0.0, 0.5), repeats=1),
        Choice(questions=2, people=4),
        Answers([TEXT], each=2, cap=6, examples=1, people=3, passage=90),
    ]


def texts(count: int, prompt: int = 150, scored: int = 10) -> list[Item]:
    prompts = [tiny.prompt_of(prompt - 7 * place, place) for place in range(count)]
    forced = [tiny.prompt_of(scored + 1, 50 + place) for place in range(count)]
    return [Item(f"{place}", *each, 1, compared=True) for place, each in enumerate(zip(prompts, forced, strict=True))]


def rows(quality: Quality) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = quality.samples.to_pylist()
    return found


def hugging_face(loaded: Loaded, item: Item) -> list[float]:
    """Log-probabilities of the scored tokens in one plain pass."""
    loaded.model.set_attn_implementation("sdpa")
    ids = torch.tensor([[*item.prompt, *item.forced]])
    with torch.inference_mode():
        logits = loaded.model(ids, use_cache=False).logits[0].float()
    first = len(item.prompt) + item.scored_from
    scored = torch.log_softmax(logits[first - 1 : -1], -1).gather(1, ids[0, first:, None])
    return [float(each) for each in scored[:, 0]]


def test_tokens_score_as_in_hugging_face() -> None:
    """Each to float32's noise in a float32 cache; perplexity to 1e-3 in the fp16 one."""
    loaded, items = tiny_loaded(), texts(3)
    wanted = [hugging_face(loaded, item) for item in items]
    for outcome, expected in zip(follow(loaded, fp32(), items, None, {}), wanted, strict=True):
        assert outcome.log_probabilities == pytest.approx(expected, abs=2e-5)
    outcomes = follow(loaded, policy_named("fp16"), items, None, {})
    nats = [sum(outcome.log_probabilities) / 10 for outcome in outcomes]
    assert math.exp(-sum(nats) / 3) == pytest.approx(math.exp(-sum(map(sum, wanted)) / 30), rel=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prompt_computed_once_leaves_what_its_own_pass_would(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, for every live policy: logits, generated tokens, bytes held."""
    loaded, items, policy, means = tiny_loaded(), texts(3), policy_named(name), tiny.key_means()
    items.append(Item("free", tiny.prompt_of(120, 9), generated=12))
    shared = replace(loaded, model=SharedPrompts(loaded.model, queries=tiny.CONTEXT))
    reference: dict[tuple[int, int], torch.Tensor] = {}
    assert follow(shared, policy_named("fp16"), items, None, reference) == follow(
        loaded, policy_named("fp16"), items, None, {}
    )
    steps, forward = [], loaded.model.forward
    monkeypatch.setattr(loaded.model, "forward", lambda **a: steps.append(a["leankv_step"].decoding) or forward(**a))
    stored = follow(shared, policy, items, means, reference)
    assert steps and all(steps), "the prompts ran through the model again"
    assert stored == follow(loaded, policy, items, means, reference)


def test_the_last_queries_are_all_that_a_policy_needs_which_reads_no_more() -> None:
    loaded, items, policy = tiny_loaded(), texts(2), policy_named("leankv")
    shared = replace(loaded, model=SharedPrompts(loaded.model, queries=64))
    reference: dict[tuple[int, int], torch.Tensor] = {}
    follow(shared, policy_named("fp16"), items, None, reference)
    assert follow(shared, policy, items, None, reference) == follow(loaded, policy, items, None, reference)


def test_fewer_bits_agree_less_and_diverge_more() -> None:
    loaded, items = tiny_loaded(), texts(3, scored=30)
    reference: dict[tuple[int, int], torch.Tensor] = {}
    follow(loaded, policy_named("fp16"), items, None, reference)

    def divergence(name: str) -> float:
        outcomes = follow(loaded, policy_named(name), items, None, reference)
        assert all(len(outcome.agreed) == 30 for outcome in outcomes)
        return sum(sum(outcome.divergences) for outcome in outcomes)

    assert divergence("fp16") == 0.0
    assert 0 < divergence("int8") < divergence("uniform:format=K4V4") < divergence("uniform:format=K2V4")


def test_twice_is_the_same_in_every_byte_and_a_folder_grows(tmp_path: Path) -> None:
    seen: list[float] = []
    first = evaluate(evaluation(["leankv", "fp16"], some_tasks()), tmp_path / "a", seen.append)
    evaluate(evaluation(["leankv", "fp16"], some_tasks()), tmp_path / "b", seen.append)
    for name in ("quality.json", "samples.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert seen[-1] == pytest.approx(1.0) and list(first.policies) == ["fp16", "leankv"]
    evaluate(evaluation(["int4"], some_tasks()[:1]), tmp_path / "a", seen.append)
    grown = load_quality(tmp_path / "a")
    assert list(grown.policies) == ["fp16", "int4", "leankv"] and set(grown.settings) == set(first.settings)
    assert grown.policies["leankv"] == first.policies["leankv"]
    assert set(grown.policies["int4"].scores) == {"perplexity", "agreement", "kl_nats"}
    assert not (tmp_path / "a" / "journal.jsonl").exists()


def test_cut_off_after_any_batch_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """Ctrl-C, or a kill in the midst of a line."""
    asked = evaluation(["fp16", "leankv-r"], some_tasks())
    evaluate(asked, tmp_path / "whole", lambda share: None)

    def stop(share: float) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, tmp_path / "cut", stop)
    assert not (tmp_path / "cut" / "quality.json").exists()
    with (tmp_path / "cut" / "journal.jsonl").open("a") as stream:
        stream.write('{"identity": {"model"')
    evaluate(asked, tmp_path / "cut", lambda share: None)
    for name in ("quality.json", "samples.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_progress_of_a_call_that_goes_on_counts_what_was_done(tmp_path: Path) -> None:
    asked, cut, rest = evaluation(["fp16", "leankv-r"], some_tasks()), list[float](), list[float]()

    def stop(share: float) -> None:
        cut.append(share)
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, tmp_path, stop)
    evaluate(asked, tmp_path, rest.append)
    assert cut[0] == 0 and rest[0] == pytest.approx(cut[-1])
    assert rest == sorted(rest) and rest[-1] == pytest.approx(1.0)
    again: list[float] = []
    evaluate(asked, tmp_path, again.append)
    assert again == [pytest.approx(1.0)]


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    evaluate(evaluation(["fp16"], some_tasks()[:1]), tmp_path, lambda share: None)
    other: list[Task] = [Perplexity([TEXT], windows=5, prefix=140, scored=12)]
    with pytest.raises(InputError, match="other settings of task perplexity"):
        evaluate(evaluation(["fp16"], other), tmp_path, lambda share: None)
    with pytest.raises(InputError, match="seed 0, not 1"):
        evaluate(replace(evaluation(["fp16"], some_tasks()[:1]), seed=1), tmp_path, lambda share: None)


def test_a_text_or_a_model_of_the_same_name_that_is_another_is_refused(tmp_path: Path) -> None:
    asked = evaluation(["fp16"], some_tasks()[:1])
    evaluate(asked, tmp_path, lambda share: None)
    other = Text(TEXT.name, TEXT.content.replace("gulls", "whales"))
    with pytest.raises(InputError, match="other settings of task perplexity"):
        evaluate(
            evaluation(["fp16"], [Perplexity([other], windows=5, prefix=150, scored=12)]), tmp_path, lambda share: None
        )
    trained = copy.deepcopy(asked.loaded.model)
    with torch.no_grad():
        next(trained.parameters()).mul_(1.01)
    with pytest.raises(InputError, match="model_sha256"):
        evaluate(replace(asked, loaded=replace(asked.loaded, model=trained)), tmp_path, lambda share: None)


def test_folders_and_journals_of_before_digests_were_noted_grow_and_go_on(tmp_path: Path) -> None:
    """Finished or cut off: what they do not tell is taken to be the same, and noted from then on."""
    asked = evaluation(["fp16"], some_tasks())
    wanted = evaluate(asked, tmp_path / "whole", lambda share: None)

    def stop(share: float) -> None:
        if share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, tmp_path / "cut", stop)
    without_digests(tmp_path / "cut" / "journal.jsonl")
    evaluate(asked, tmp_path / "cut", lambda share: None)
    for name in ("quality.json", "samples.parquet"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    without_digests(tmp_path / "whole" / "quality.json")
    grown = evaluate(evaluation(["int4"], some_tasks()[:1]), tmp_path / "whole", lambda share: None)
    assert grown.policies["fp16"] == wanted.policies["fp16"] and grown.model_sha256 == wanted.model_sha256
    assert grown.settings["perplexity"] == wanted.settings["perplexity"]


def without_digests(file: Path) -> None:
    """As it was written before, line by line or whole."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    file.write_text("".join(json.dumps(_bare(json.loads(line))) + "\n" for line in lines))


def _bare(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {name: _bare(value) for name, value in content.items() if not name.endswith("_sha256")}


def test_more_windows_add_to_what_is_there(tmp_path: Path) -> None:
    def asked(windows: int) -> Evaluation:
        return evaluation(["int4"], [Perplexity([TEXT], windows=windows, prefix=150, scored=5)])

    few = evaluate(asked(3), tmp_path, lambda share: None)
    more = evaluate(asked(6), tmp_path, lambda share: None)
    assert more.settings["perplexity"]["windows"] == 6 and more.policies["int4"].scores["perplexity"].n == 6
    assert [row for row in rows(more) if row["sample_id"] < "window-0003"] == rows(few)
    assert rows(more) == rows(evaluate(asked(6), None, lambda share: None))
    assert evaluate(asked(3), tmp_path, lambda share: None).policies == more.policies


def test_what_the_samples_tell() -> None:
    found = rows(evaluate(evaluation(["fp16", "int4"], some_tasks()), None, lambda share: None))
    by_task = {task: [row for row in found if row["task"] == task and row["policy"] == "int4"] for task in
               ("perplexity", "needle", "choice", "answers")}  # fmt: skip
    assert {task: len(each) for task, each in by_task.items()} == {
        "perplexity": 5,
        "needle": 2,
        "choice": 2,
        "answers": 6,
    }
    for row in by_task["perplexity"]:
        assert row["score"] == pytest.approx(math.exp(row["log_probability_nats"] / 12))
        assert (row["prompt_tokens"], row["scored_tokens"]) == (150, 12)
    for row in by_task["needle"]:
        assert (row["prompt_tokens"], row["scored_tokens"], row["context_tokens"]) == (200, 5, 200)
    for row in by_task["answers"]:
        assert row["output_tokens"] <= 6 and row["stopped"] == (row["output_tokens"] < 6)
    assert all(2 < row["kv_fp16_bytes"] / row["kv_page_bytes"] < 4 for row in by_task["perplexity"])


def test_bytes_are_those_that_the_scored_tokens_were_predicted_from() -> None:
    """What a recompression after the last scored token frees was there for all of them."""
    pruning = "leankv-r:prune=0.3,low_mass=0.4,recompress_every=16"

    def ratio(scored: int) -> float:
        tasks: list[Task] = [Perplexity([TEXT], windows=2, prefix=150, scored=scored)]
        found = evaluate(evaluation([pruning], tasks), None, lambda share: None)
        plain = found.of("fp16").to_pylist()[0]
        step = plain["kv_fp16_bytes"] / (150 + (scored - 1) / 2)
        assert step == found.model.layers * found.model.kv_heads * 2 * 2 * found.model.head_dim
        assert found.settings["perplexity"]["kv_bytes"] == found.bytes_of == "mean over decode steps"
        return found.policies[pruning].nominal_ratio

    before, at, after = ratio(15), ratio(16), ratio(32)
    assert at == pytest.approx(before, rel=0.02) and after > 1.05 * at


def test_longer_than_the_model_reads_is_refused() -> None:
    tasks: list[Task] = [Perplexity([TEXT], windows=1, prefix=510, scored=12)]
    with pytest.raises(InputError, match="a sample takes 523 tokens, tiny reads 512"):
        evaluate(evaluation(["fp16"], tasks), None, lambda share: None)


def test_a_needle_lies_where_it_should_and_its_digits_are_scored() -> None:
    items = Needle([TEXT], contexts=(220,), depths=(0.0, 1.0), repeats=1).items(Letters())
    digits = Letters()(items[0].about["reference"])["input_ids"]
    assert list(items[0].forced[items[0].scored_from :]) == digits and items[0].scored_from == len(LEAD)

    def place(item: Item) -> int:
        wanted = Letters()(item.about["reference"])["input_ids"]
        return next(at for at in range(len(item.prompt)) if list(item.prompt[at : at + 5]) == wanted)

    assert all(len(item.prompt) == 220 for item in items)
    assert place(items[0]) < 110 < place(items[1])


def test_options_compete_where_they_first_differ() -> None:
    found = Choice(questions=4, people=5).items(Letters())
    for item in found:
        assert len(set(item.options)) == 4 and item.forced[-1] in item.options
        assert item.scored_from == len(item.forced) - 1
    outcome = Outcome(options=[-1.0, -3.0, -2.0, -4.0])
    row = Choice(questions=1).graded(replace(found[0], forced=[found[0].options[0]]), outcome, outcome, Letters())
    assert row["score"] == 1.0 and row["agreement"] == 1.0
    assert row["log_probability_nats"] == pytest.approx(-math.log(1 + math.e**-1 + math.e**-2 + math.e**-3))


def test_mmlu_and_gsm8k_by_path(tmp_path: Path) -> None:
    import tarfile

    table = tmp_path / "physics_test.csv"
    table.write_text("question,choice0,choice1,choice2,choice3,answer\nHow many?,one,two,three,four,2\n")
    with tarfile.open(tmp_path / "mmlu.tar.gz", "w:gz") as archive:
        archive.add(table, arcname="test/physics_test.csv")
    item = Choice(questions=5, mmlu=tmp_path / "mmlu.tar.gz").items(Letters())[0]
    assert (item.about["subject"], item.about["reference"]) == ("physics", "C")
    problems = tmp_path / "gsm8k.jsonl"
    problems.write_text('{"question": "How much?", "answer": "1 + 1 is 2\\n#### 1,002"}\n')
    asked = Answers([], each=3, cap=5, gsm8k=problems)
    item = asked.items(Letters())[0]
    assert item.about["reference"] == "1002"
    said = replace_decode("It was 7. The answer is 1,002.")
    assert asked.graded(item, Outcome(output=[1, 2]), Outcome(), said)["score"] == 1.0
    assert asked.graded(item, Outcome(output=[1, 2]), Outcome(), replace_decode("1002 or 3"))["score"] == 0.0
    problems.write_text("no json\n")
    with pytest.raises(InputError, match="line 1 is no GSM8K problem"):
        asked.items(Letters())
    with pytest.raises(InputError, match="MMLU"):
        Choice(questions=1, mmlu=problems).items(Letters())
    half = tmp_path / "half.tar.gz"
    half.write_bytes((tmp_path / "mmlu.tar.gz").read_bytes()[:-60])
    with pytest.raises(InputError, match="cannot read"):
        Choice(questions=1, mmlu=half).items(Letters())


@pytest.mark.parametrize(
    ("reference", "said", "right"),
    [
        ("18", "The answer is $18.00", 1.0),
        ("18", "The answer is 18.", 1.0),
        ("18", "The answer is 18.5", 0.0),
        ("1018", "She has 3 left, so 1,018.0", 1.0),
        ("-4", "It is -4", 1.0),
        ("0", "The answer is $18.00", 0.0),
    ],
)
def test_numbers_are_compared_as_numbers(reference: str, said: str, right: float) -> None:
    item = Item("sum", [1], about={"subject": "arithmetic", "reference": reference})
    assert Answers([], 1, 5).graded(item, Outcome(output=[1]), Outcome(), replace_decode(said))["score"] == right


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Alice lives in York.", 1.0),
        ("Alice lives in **york**, and keeps a cat.", 1.0),
        ("Alice lives in New York.", 0.0),
        ("Alice lives in Yorkshire.", 0.0),
        ("Alice lives in York or in Paris.", 0.0),
        ("Alice lives in Paris.", 0.0),
    ],
)
def test_a_record_is_right_where_its_city_alone_is_said(said: str, right: float) -> None:
    item = Item("record", [1], about={"subject": "records", "reference": "York"})
    assert Answers([], 1, 5).graded(item, Outcome(output=[1]), Outcome(), replace_decode(said))["score"] == right


def replace_decode(said: str) -> Letters:
    class Said(Letters):
        def decode(self, tokens: list[int], **_: Any) -> str:
            return said

    return Said()


def test_prefixes() -> None:
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2 and common_prefix([[1], [2]]) == 0
    whole, first = begun(Letters(), "ab", "cd")
    assert first == 2 and len(whole) == 4
