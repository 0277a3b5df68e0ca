"""Whether the demo's thoughts matter: other thoughts put in their place, where the truth is known.

In the demo's language a thought is the way to the answer: its own must carry the answer, and others destroy it.
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
    """Lines of the language, thought about once each: after the question, where the answer comes next.

    They are compared with `before` too, the base model as it was before it learned to think.
    """
    equals = tokenizer.convert_tokens_to_ids(EQUALS)
    texts = []
    for problem in problems:
        ids = tokenizer(question(problem) + language.answer(problem))["input_ids"]
        asked = ids.index(equals)
        texts.append(TextToTrace(ids=ids, may_think=[asked]))
    return trace(model, tokenizer, texts, TraceSettings(seed=seed), name="the demo", before=before)
