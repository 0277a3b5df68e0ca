"""Measure whether the demo's thoughts matter, by replacing them with others.

In the demo's language a useful thought is the way to the answer, so the right answer should depend on it.
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.demo.language import EQUALS, Language, question
from quietstar.inspection.observe import trace
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.inspection.trace import Trace
from quietstar.model import QuietStarForCausalLM


def trace_answers(
    model: QuietStarForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    language: Language,
    problems: list[str],
    seed: int,
    before: PreTrainedModel,
) -> Trace:
    """Return a trace of one thought per problem: after the question, where the answer comes next.

    It also compares with `before`, the base model as it was before it learned to think.
    """
    equals = tokenizer.convert_tokens_to_ids(EQUALS)
    texts = []
    for problem in problems:
        ids = tokenizer(question(problem) + language.answer(problem))["input_ids"]
        end_of_question = ids.index(equals)
        texts.append(TextToTrace(ids=ids, may_think=[end_of_question]))
    return trace(model, tokenizer, texts, TraceSettings(seed=seed), name="the demo", before=before)
