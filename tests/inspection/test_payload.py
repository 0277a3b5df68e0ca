"""The report's data: the verdict, then every position's columns."""

import json
import re

from quietstar.inspection.payload import payload_of
from quietstar.inspection.report import report_html
from tests.inspection.test_observe import IDS, SIZE, TOKENIZER, thinker, traced
from tests.tiny import tiny_base


def test_a_report_begins_with_the_verdict() -> None:
    model, text = thinker(), IDS * 3
    before = tiny_base(seed=1, **SIZE)
    found = model.inspect(TOKENIZER.decode(text), TOKENIZER, before=before)
    first = found.summary.sentences[0]
    assert "filler of the same length" in first
    assert "before training" in first
    assert payload_of(found)["summary"] == found.summary.sentences
    in_html = re.search(r'id="payload">(.*?)</script>', report_html(payload_of(found)))
    assert in_html is not None
    assert json.loads(in_html[1])["summary"][0] == first


def test_log_probabilities_before_training_are_in_it_for_every_row() -> None:
    known = thinker().inspect(["What is it?", "Eggs."], TOKENIZER, before=tiny_base(**SIZE))
    values = [value for row in payload_of(known)["rows"] for value in row["before_logprob"]]
    assert values == known.columns["before_logprob"]
    assert values.count(None) == 2  # nothing follows the last token
    unknown = payload_of(traced(thinker()))["rows"]
    assert unknown[0]["before_logprob"] == [None] * len(IDS)
